"""tersor compress with recipes of several steps: the plan, a killed run that goes on, float files, ready recipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import tersor
from tersor import Recipe, steps
from tersor.cli import app
from tersor.plan import plan

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

CODE = """
import os, time, torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))

class Slow(list):
    def __iter__(self):
        for item in super().__iter__():
            time.sleep(float(os.environ.get("SLOW", "0")))
            yield item

def data():
    torch.manual_seed(1)
    batches = Slow(torch.randn(8, 32) for _ in range(5))
    return {"example_inputs": batches[0], "train": batches, "evaluate": lambda model: 0.5}
"""

RECIPE = """
[[steps]]
step = "prune"
sparsity = 0.5

[[steps]]
step = "distill"
epochs = 4
losses = ["match", {loss = "cosine", layers = {"0" = "0"}}]

[[steps]]
step = "quantize"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipes_of_test.py").write_text(CODE)
    (tmp_path / "r.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


COMMAND = ["compress", "recipes_of_test:model", "--data", "recipes_of_test:data", "--recipe", "r.toml"]


def test_a_dry_run_shows_the_plan_and_writes_nothing(folder: Path) -> None:
    before = sorted(folder.iterdir())
    result = CliRunner().invoke(app, [*COMMAND, "--dry-run", "--work", "w"])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "2 of 2 linear layers; the float model takes 12.6 kB" in text
    assert "nothing was changed or written" in text
    content = json.loads(CliRunner().invoke(app, [*COMMAND, "--dry-run", "--json"]).output)
    assert content["schema"] == "tersor.plan/1"
    prune, distill, quantize = content["steps"]
    assert [prune["batches"], distill["batches"], quantize["batches"]] == [5, 20, None]
    assert prune["seconds"] < distill["seconds"]
    assert (prune["bytes"], distill["bytes"]) == (12608, 12608)
    assert 0.1 * 12608 < quantize["bytes"] < 0.25 * 12608
    assert sorted(path for path in folder.iterdir() if path.name != "__pycache__") == before
    assert CliRunner().invoke(app, COMMAND).exit_code == 2  # no --out


def test_a_plan_says_what_is_missing_and_what_cannot_work() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    found = plan(model, Recipe([steps.Distill(), steps.Quantize(activations="static")]))
    assert len(found.missing) == 2
    assert "Missing: train data" in found.table()
    with pytest.raises(tersor.RecipeError, match="can't work there"):
        plan(model, Recipe([steps.Quantize(), steps.Prune()]))
    with pytest.raises(tersor.RecipeError, match="selects no linear layer"):
        plan(model, Recipe([steps.Quantize()], exclude=["*"]))


def test_a_killed_command_goes_on_and_ends_as_an_uninterrupted_one(folder: Path) -> None:
    command = [sys.executable, "-m", "tersor", *COMMAND, "--force", "--threads", "1", "--work", "w", "--out"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "SLOW": "0.4"}
    with subprocess.Popen([*command, "out"], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        deadline = time.monotonic() + 120
        while not (folder / "w" / "progress.json").exists() and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    assert json.loads((folder / "w" / "progress.json").read_text())["finished"] == 1
    assert not (folder / "out").exists()
    result = CliRunner().invoke(app, [*command[3:], "out"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, [*COMMAND, "--force", "--threads", "1", "--out", "whole"])
    assert result.exit_code == 0, result.output
    assert (folder / "out").read_bytes() == (folder / "whole").read_bytes()


def test_a_float_file_is_a_model(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=30
    )
    torch.manual_seed(0)
    tersor.save(transformers.BertModel(config).eval(), folder / "float.tersor")
    arguments = ["compress", "float.tersor", "--example", "input_ids=1x5:int64", "--force"]
    result = CliRunner().invoke(app, [*arguments, "--out", "out.tersor"])
    assert result.exit_code == 0, result.output
    assert "Int8Linear" in str(tersor.load("out.tersor"))
    result = CliRunner().invoke(app, ["compress", "out.tersor", "--out", "again"])
    assert result.exit_code == 2
    assert "compressed already" in " ".join(result.output.split())


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_ready_recipes(path: Path) -> None:
    recipe = Recipe.from_toml(path)
    recipe.check_order()
    assert Recipe.from_toml_text(recipe.to_toml()) == recipe
    assert path.read_text().startswith("# ")
    assert path.name in (RECIPES.parent / "docs" / "recipes.md").read_text()


def test_the_ready_recipes_run() -> None:
    """Each on a small model of its kind."""
    assert {path.stem for path in RECIPES.glob("*.toml")} >= {"transformer_encoder", "cnn", "recurrent"}
    x = torch.randn(8, 1, 12, 12)
    cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 32), nn.ReLU(), nn.Linear(32, 5))
    result = tersor.compress(cnn.eval(), Recipe.from_toml(RECIPES / "cnn.toml"), x, [x], force=True, progress=False)
    start, last = result.report.steps
    assert (start.name, last.name) == ("float", "replace layers")
    assert (last.parameters, last.flops) == (start.parameters, start.flops)  # a graph counts as what it stands for
    assert result.report.totals.output_cosine > 0.99
    words = torch.randn(4, 7, 16)

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.GRU(16, 32, batch_first=True)
            self.head = nn.Linear(32, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.recurrent(x)[0])
            return out

    result = tersor.compress(
        Tagger().eval(), Recipe.from_toml(RECIPES / "recurrent.toml"), words, [words], force=True, progress=False
    )
    assert result.report.totals.output_cosine > 0.99


def test_the_ready_recipes_for_transformers_run(tmp_path: Path) -> None:
    """On a small encoder; the one that drops blocks goes on in its work folder, as a file knows what was dropped."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32, vocab_size=30
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    batch = {"input_ids": torch.randint(30, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.int64)}
    settings: dict[str, Any] = {"train": [batch, batch], "force": True, "progress": False}
    result = tersor.compress(model, Recipe.from_toml(RECIPES / "transformer_encoder.toml"), batch, **settings)
    assert any("distilled by hidden, match for 4 steps" in note for note in result.report.notes)
    small = Recipe.from_toml(RECIPES / "transformer_small.toml")
    whole = tersor.compress(model, small, batch, **settings)
    assert len(whole.model.encoder.layer) == 4
    assert [row.name for row in whole.report.steps][1:4] == ["drop_layers", "distill", "prune"]
    assert whole.report.steps[1].flops < 0.7 * whole.report.steps[0].flops
    tersor.compress(model, small, batch, **settings, work=tmp_path)
    again = tersor.compress(model, small, batch, **settings, work=tmp_path)  # all from the folder
    for key, value in again.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[key]), key
    assert again.report.notes == whole.report.notes

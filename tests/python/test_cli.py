"""The command line: what it writes, prints and exits with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import tersor
from tersor.cli import app
from tersor.cli_inputs import make_example
from tersor.nn import Int8Linear

FACTORIES = """
import sys, time
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))

def no_linear():
    return nn.Sequential(nn.ReLU())

def tensor():
    return torch.ones(3)

def broken():
    raise ValueError("no weights\\nhere")

ready = make()

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(32, 32)

    def forward(self, x):
        print("running", file=sys.stderr, flush=True)
        time.sleep(60)
        return self.layer(x)

def example():
    return torch.ones(4, 32)

def everything():
    return {"example_inputs": torch.ones(4, 32), "calibration": [torch.ones(4, 32), -torch.ones(2, 32)]}
"""
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in a folder that holds factories.py."""
    (tmp_path / "factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERSOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "factories", raising=False)
    return lambda *words: CliRunner().invoke(app, list(words), prog_name="tersor")


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"factories.py", "__pycache__", "cache"}


def compress(run: Run, *words: str) -> Result:
    return run("compress", "factories:make", "--out", "out.tersor", "--force", *words)


def test_version_and_help(run: Run) -> None:
    assert run("--version").stdout == f"tersor {tersor.__version__}\n"
    shown = run("--help")
    assert shown.exit_code == 0
    assert all(word in shown.stdout for word in ("compress", "inspect", "bench", "doctor", "demo"))


def test_python_m_tersor() -> None:
    shown = subprocess.run([sys.executable, "-m", "tersor", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"tersor {tersor.__version__}\n"


def test_compress_writes_a_file_that_loads(run: Run, tmp_path: Path) -> None:
    result = compress(run, "--example", "4x32")
    assert result.exit_code == 0, result.output
    assert "2 of 2 linear layers swapped" in result.stdout
    assert "Saved out.tersor" in result.stdout
    assert leftovers(tmp_path) == {"out.tersor"}
    import factories  # type: ignore[import-not-found]

    loaded = tersor.load("out.tersor", model=factories.make())
    x = torch.randn(5, 32)
    example = make_example(["4x32"], None)
    recipe = tersor.Recipe([tersor.steps.Quantize()])
    again = tersor.compress(factories.make(), recipe, example, force=True, progress=False)
    assert isinstance(loaded[0], Int8Linear)
    assert torch.equal(loaded(x), again.model.eval()(x))


def test_json_stands_alone_on_standard_output(run: Run, tmp_path: Path) -> None:
    result = compress(run, "--example", "4x32", "--json")
    data = json.loads(result.stdout)
    assert (data["schema"], data["file"]) == ("tersor.compress/1", "out.tersor")
    assert data["file_bytes"] == (tmp_path / "out.tersor").stat().st_size
    assert [row["action"] for row in data["report"]["rows"]] == ["swapped", "swapped"]
    assert all(row["forced"] and row["rel_error"] < 0.05 for row in data["report"]["rows"])


def test_without_force_the_speed_is_measured(run: Run) -> None:
    result = run("compress", "factories:make", "--out", "out.tersor", "--example", "4x32", "--json")
    if result.exit_code == 0:
        rows = json.loads(result.stdout)["report"]["rows"]
        assert all(set(row["float_us"]) == {"4"} for row in rows)
    else:  # such small layers may be faster in float
        assert "Why each one was kept" in json.loads(result.stdout)["error"]


def test_a_recipe_and_data_from_factories(run: Run, tmp_path: Path) -> None:
    recipe = tersor.Recipe([tersor.steps.Quantize(activations="static")], exclude=["0"])
    recipe.to_toml(tmp_path / "recipe.toml")
    result = compress(run, "--recipe", "recipe.toml", "--data", "factories:everything", "--json")
    assert result.exit_code == 0, result.output
    rows = {row["name"]: row for row in json.loads(result.stdout)["report"]["rows"]}
    assert rows["0"]["reason"] == "excluded by '0'"
    assert rows["2"]["action"] == "swapped"
    assert tersor.inspect("out.tersor").layers[0].config["x_scale"] > 0


def test_data_may_be_the_example_itself_and_the_model_an_object(run: Run) -> None:
    words = ("--data", "factories:example", "--force", "--json")
    result = run("compress", "factories:ready", "--out", "out.tersor", *words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["report"]["totals"]["output_cosine"] > 0.99


@pytest.mark.parametrize("suffix", [".html", ".json"])
def test_the_report_is_written_on_demand(run: Run, tmp_path: Path, suffix: str) -> None:
    assert compress(run, "--report", f"report{suffix}").exit_code == 0
    text = (tmp_path / f"report{suffix}").read_text()
    assert ("<html" in text) if suffix == ".html" else (json.loads(text)["totals"]["swapped"] == 2)


WRONG_USAGE = [
    (["nonsense"], "No such command"),
    (["compress", "factories:make"], "--out"),
    (["compress", "factories", "--out", "o"], "neither package.module:factory nor the folder"),
    (["compress", "nowhere.to:be", "--out", "o"], "there is no module 'nowhere'"),
    (["compress", "factories:absent", "--out", "o"], "factories has no 'absent'"),
    (["compress", "factories.py", "--out", "o"], "name a factory"),
    (["compress", "cache", "--out", "o"], "holds no config.json"),
    (["compress", "factories:make", "--out", "no/such/o"], "there is no folder no/such"),
    (["compress", "factories:make", "--out", "cache"], "is a directory"),
    (["compress", "factories:make", "--out", "o", "--recipe", "absent.toml"], "does not exist"),
    (["compress", "factories:make", "--out", "o", "--report", "r.txt"], "neither .html nor .json"),
    (["compress", "factories:make", "--out", "o", "--example", "4by32"], "is not of the form"),
    (["compress", "factories:make", "--out", "o", "--example", "4x32:string"], "no dtype"),
    (["compress", "factories:make", "--out", "o", "--example", "x=4x32", "--example", "4"], "name all inputs or none"),
    (["compress", "factories:make", "--out", "o", "--example", "4x32", "--data", "a:b"], "not both"),
    (["compress", "factories:make", "--out", "o", "--threads", "0"], "threads"),
    (["inspect", "absent.tersor"], "does not exist"),
    (["bench", "--shape", "1x2"], "ROWSxOUTxIN"),
    (["bench", "--shape", "1x0x2"], "ROWSxOUTxIN"),
]


@pytest.mark.parametrize(("words", "message"), WRONG_USAGE)
def test_wrong_usage_exits_with_2(run: Run, tmp_path: Path, words: list[str], message: str) -> None:
    (tmp_path / "cache").mkdir()
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert result.stdout == ""
    assert leftovers(tmp_path) == set()


FAILURES = [
    (["compress", "factories:no_linear", "--out", "o"], "holds no linear layer"),
    (["compress", "factories:tensor", "--out", "o"], "gave a Tensor, not a torch.nn.Module"),
    (["compress", "factories:broken", "--out", "o"], "factories:broken failed: ValueError: no weights"),
    (["compress", "factories:make", "--out", "o", "--example", "4x33"], "the model failed on example_inputs"),
    (["inspect", "factories.py"], "not a tersor file"),
]


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("words", "message"), FAILURES)
def test_failures_exit_with_1_and_no_traceback(
    run: Run, tmp_path: Path, words: list[str], message: str, as_json: bool
) -> None:
    result = run(*words, *(["--json"] if as_json else []))
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.output
    if as_json:
        assert message in json.loads(result.stdout)["error"]
    else:
        assert result.stdout == ""
    assert leftovers(tmp_path) == set()


def test_a_wrong_recipe_lists_what_exists(run: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('[[steps]]\nstep = "quantise"\n')
    result = compress(run, "--recipe", "recipe.toml")
    assert result.exit_code == 1
    assert "did you mean 'quantize'" in result.stderr


def test_debug_shows_the_traceback(run: Run) -> None:
    result = run("compress", "factories:broken", "--out", "o", "--debug")
    assert result.exit_code == 1
    assert isinstance(result.exception, tersor.TersorError)
    assert isinstance(result.exception.__cause__, ValueError)


def test_a_compressed_file_is_refused(run: Run) -> None:
    assert compress(run).exit_code == 0
    result = run("compress", "out.tersor", "--out", "again.tersor")
    assert result.exit_code == 2
    assert "is compressed already (2 int8_linear)" in " ".join(result.stderr.split())


def test_inspect_shows_the_layers(run: Run) -> None:
    assert compress(run).exit_code == 0
    assert json.loads(run("inspect", "out.tersor", "--json").stdout)
    assert "int8_linear" in run("inspect", "out.tersor").stdout


def test_a_hugging_face_folder(run: Run, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "hf")
    words = ("--example", "input_ids=2x7:int64", "--example", "attention_mask=2x7:ones", "--json")
    result = run("compress", "hf", "--out", "out.tersor", "--force", *words)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["report"]["totals"]["swapped"] == 7
    assert data["report"]["totals"]["output_cosine"] > 0.999
    assert type(tersor.load("out.tersor")).__name__ == "BertModel"


def test_a_broken_hugging_face_folder(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "bert"}')
    result = run("compress", "hf", "--out", "out.tersor")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: transformers can't load hf: ")
    (tmp_path / "hf" / "config.json").write_text("{")
    assert run("compress", "hf", "--out", "out.tersor").exit_code == 1


def test_doctor_in_json(run: Run) -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["healthy"] is True


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_is_clean(run: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tersor", "compress", "factories:Slow", "--out", "out.tersor", "--example", "1x32"]
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # In a shell's background the tests ignore SIGINT, and so would the child.
    child = subprocess.Popen(command, **pipes, cwd=tmp_path, preexec_fn=_heed_interrupts)
    assert child.stderr is not None
    try:
        assert child.stderr.readline() == "running\n"
        time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=30)
    finally:
        child.kill()
    assert child.returncode == 130
    assert errors == "interrupted; no half-written file was left behind\n"
    assert output == ""
    assert leftovers(tmp_path) == set()


def test_nothing_heavy_is_imported_for_help() -> None:
    code = "import sys, tersor.cli; print('torch' in sys.modules, 'transformers' in sys.modules)"
    environment = {**os.environ}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split() == ["False", "False"]

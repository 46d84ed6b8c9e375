"""Recipes with a prune step: what becomes sparse, what the report says, recovery, data, files, the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

import tersor
from tersor import PruneError, Recipe, RecipeError, SwapError, steps, tune_sparse
from tersor.cli import app
from tersor.nn import Int8Linear, SparseInt8Linear, SparseLinear

tune: Any = __import__("importlib").import_module("tersor.tune")

BOTH = Recipe([steps.Prune(sparsity=0.75), steps.Quantize()])
ALONE = Recipe([steps.Prune(sparsity=0.75)])


class Net(nn.Module):
    """Two linear layers and a convolution, which is left alone. With labels it returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(1, 2, 3, padding=1)
        self.first = nn.Linear(64, 40)
        self.dropout = nn.Dropout(0.5)
        self.second = nn.Linear(40, 8)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        y = self.second(self.dropout(torch.relu(self.first(self.conv(x[:, None]).flatten(1)))))
        return {"y": y} if labels is None else {"loss": functional.cross_entropy(y, labels), "y": y}


def batches(count: int = 4, labels: bool = False) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    made = [{"x": torch.randn(16, 32, generator=generator)} for _ in range(count)]
    return [{**batch, "labels": batch["x"][:, :8].argmax(1)} for batch in made] if labels else made


def weights_of(model: nn.Module) -> list[Tensor]:
    return [model.first.weight + 0, model.second.weight + 0]


def zeros(weight: Tensor) -> float:
    return float((weight == 0).float().mean())


@pytest.mark.parametrize(("recipe", "cls"), [(ALONE, SparseLinear), (BOTH, SparseInt8Linear)])
def test_pruned_layers_become_sparse(recipe: Recipe, cls: type, tmp_path: Path) -> None:
    model = Net().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (example,) = batches(1)
    result = tersor.compress(model, recipe, example, force=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert type(result.model.first) is type(result.model.second) is cls
    assert torch.equal(result.model.conv.weight, model.conv.weight)
    for weight in weights_of(result.model):
        assert abs(zeros(weight) - 0.75) < 0.02
    row = result.report.rows[0]
    assert (row.layer, row.pattern, row.forced) == (cls.__name__, "1x4", True)
    assert row.sparsity is not None
    assert abs(row.sparsity - 0.75) < 0.01
    assert row.bytes_after < row.bytes_before / 2
    assert (row.form is None) == (cls is SparseLinear)
    form = f" {row.form}" if row.form else ""
    assert f"sparse{form}, 75 % zeros in 1x4" in " ".join(result.report.table(200).split())
    assert any("pruned 2 layers by magnitude, 1x4: 75.0%" in note for note in result.report.notes)
    tersor.save(result.model, tmp_path / "model")
    loaded = tersor.load(tmp_path / "model", Net())
    assert torch.equal(loaded(**example)["y"], result.model(**example)["y"])
    assert {layer.config["pattern"] for layer in tersor.inspect(tmp_path / "model").layers} == {"1x4"}
    assert tersor.restore(result.model) == 2
    assert type(result.model.first) is nn.Linear


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1"])
def test_prune_alone_computes_what_the_pruned_model_computes(pattern: str) -> None:
    model, (example,) = Net().eval(), batches(1)
    pruned = Net().eval()
    recipe = Recipe([steps.Prune(pattern=pattern, sparsity=None)])
    tersor.prune.Pruner(pruned, pattern=pattern, sparsity=recipe.steps[0].sparsity, include=["first", "second"])
    result = tersor.compress(model, recipe, example, force=True)
    assert result.model.first.pattern == pattern
    for one, other in zip(weights_of(result.model), weights_of(pruned), strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(result.model(**example)["y"], pruned(**example)["y"])
    error = (
        functional.mse_loss(pruned(**example)["y"], model(**example)["y"]).sqrt()
        / model(**example)["y"].square().mean().sqrt()
    )
    assert result.report.totals.output_error == pytest.approx(float(error), rel=1e-3)  # against the float model
    assert result.report.rows[0].rel_error < 1e-6  # against the pruned one


def test_overrides_and_exclusions() -> None:
    recipe = Recipe([steps.Prune(sparsity=0.9, overrides={"second": 0.0}), steps.Quantize()])
    result = tersor.compress(Net(), recipe, force=True)
    assert [type(result.model.first), type(result.model.second)] == [SparseInt8Linear, Int8Linear]
    assert result.report.rows[1].sparsity is None
    result = tersor.compress(Net(), Recipe(recipe.steps[:1]), force=True)
    assert [type(result.model.first), type(result.model.second)] == [SparseLinear, nn.Linear]
    assert "not pruned" in result.report.rows[1].reason
    result = tersor.compress(Net(), Recipe([steps.Prune()], exclude=["first"]), force=True)
    assert zeros(result.model.first.weight) == 0
    assert type(result.model.second) is SparseLinear


# --- What decides, with measurements that are given.


def measured(monkeypatch: pytest.MonkeyPatch, float_us: float, int8_us: float, sparse_us: Any) -> None:
    """Float, int8 and sparse layers take these microseconds; `sparse_us` is a function of the density."""

    def price(layer: nn.Module) -> float:
        if isinstance(layer, SparseInt8Linear | SparseLinear):
            return float(sparse_us(layer.density))
        return int8_us if isinstance(layer, Int8Linear) else float_us

    def race(one: Any, other: Any, x: Tensor) -> Any:
        return (price(one[0]), price(other[0])), False

    monkeypatch.setattr(tune, "race", race)
    monkeypatch.setattr(tune_sparse, "race", race)


def test_the_fastest_layer_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = batches(1)
    measured(monkeypatch, 100, 50, lambda density: 10 + 100 * density)
    result = tersor.compress(Net(), BOTH, example)
    assert type(result.model.first) is SparseInt8Linear
    row = result.report.rows[0]
    assert (row.float_us, row.tersor_us) == ({16: 100.0}, {16: 35.0})
    assert "float 100 us, int8 50 us, sparse int8 1x4 35 us at 16 rows: sparse" in row.reason
    assert "At 16 rows unstructured zeros would take" in row.remark
    measured(monkeypatch, 100, 20, lambda density: 10 + 100 * density)
    result = tersor.compress(Net(), BOTH, example)
    assert type(result.model.first) is Int8Linear
    row = result.report.rows[0]
    assert zeros(result.model.first.weight) > 0.7
    assert (row.tersor_us, row.layer, row.pattern) == ({16: 20.0}, "Int8Linear", "1x4")
    # 10 + 100 d = 20 / 1.05 at d = 0.0905
    assert "dense int8. Sparse needs about 91 % sparsity, it has 75 %" in row.reason
    assert "dense, 75 % zeros in 1x4 (1)" in " ".join(result.report.table(200).split())
    assert "(1) Sparse needs about 91 % sparsity" in result.report.table(200)


def test_a_layer_that_gains_nothing_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = batches(1)
    measured(monkeypatch, 20, 30, lambda density: 25 + 10 * density)
    for recipe in (ALONE, BOTH):
        with pytest.raises(SwapError, match=r"kept float. No sparsity would do, it has 75 %"):
            tersor.compress(Net(), recipe, example)
    measured(monkeypatch, 20, 30, lambda density: 40 * density)
    result = tersor.compress(Net(), BOTH, example)  # int8 loses to float, sparse wins over both
    assert type(result.model.first) is SparseInt8Linear


def test_times_of_the_host_decide() -> None:
    """Measured for real, in memory only: all three times are positive, and the verdict is what they say."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    tersor.prune.Pruner(layer, sparsity=0.9)
    tuner = tune_sparse.SparseTuner(cache=False)
    found = tuner.judge_sparse(layer, [1, 30], torch.float32, "1x4", quantised=True)
    assert tuner.measured >= 5  # int8 at two buckets, sparse at two, another pattern or density at one
    assert sorted(found.verdict.float_us) == [1, 64]
    assert all(time > 0 for times in (found.verdict.float_us, found.verdict.tersor_us) for time in times.values())
    assert all(text in found.verdict.reason for text in ("float ", "int8 ", "sparse int8 1x4 "))
    assert found.verdict.faster == (found.layer != "float")


def test_conv1d_of_transformers_becomes_sparse() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(conv1d(16, 32), nn.Linear(16, 8))
    made = tersor.compress(model, BOTH, force=True).model
    assert [module.kind for module in made] == ["sparse_int8_conv1d", "sparse_int8_linear"]
    assert abs(zeros(made[0].weight) - zeros(made[1].weight)) < 0.05
    floats = tersor.compress(model, ALONE, force=True).model
    assert [module.kind for module in floats] == ["sparse_conv1d", "sparse_linear"]
    assert floats[0].weight.shape == (32, 16)


# --- Training and data.


def distance(result: Any, model: nn.Module) -> float:
    (example,) = batches(1)
    return float(functional.mse_loss(result.model(**example)["y"], model(**example)["y"]))


@pytest.mark.parametrize("schedule", ["one_shot", "linear", "cubic"])
def test_training_brings_the_outputs_back(schedule: str) -> None:
    model = Net().eval()
    without = tersor.compress(model, ALONE, force=True)
    step = steps.Prune(sparsity=0.75, schedule=schedule, epochs=30, learning_rate=3e-3)
    result = tersor.compress(model, Recipe([step]), train=batches(), force=True, progress=False)
    assert abs(zeros(result.model.first.weight) - 0.75) < 0.01
    assert distance(result, model) < 0.5 * distance(without, model)
    assert any("trained for 120 steps, loss" in note for note in result.report.notes)
    assert not result.model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_training_on_the_models_own_loss_of_a_frozen_model() -> None:
    model = Net().eval().requires_grad_(False)
    step = steps.Prune(sparsity=0.5, loss="model", epochs=20, learning_rate=3e-3)
    data = batches(labels=True)
    result = tersor.compress(model, Recipe([step]), train=data, force=True)
    without = tersor.compress(model, Recipe([steps.Prune(sparsity=0.5)]), force=True)
    loss, before = (float(sum(one.model(**batch)["loss"] for batch in data)) for one in (result, without))
    assert loss < 0.8 * before
    assert not any(parameter.requires_grad for parameter in result.model.parameters())
    with pytest.raises(PruneError, match="returned no loss"):
        tersor.compress(model, Recipe([step]), train=batches(), force=True)


@pytest.mark.parametrize("criterion", sorted(tersor.prune.CRITERIA))
def test_every_criterion(criterion: str) -> None:
    recipe = Recipe([steps.Prune(criterion, sparsity=0.5), steps.Quantize()])
    result = tersor.compress(Net(), recipe, calibration=batches(labels=True), force=True)
    assert type(result.model.first) is SparseInt8Linear
    assert abs(zeros(result.model.first.weight) - 0.5) < 0.02


def test_missing_data_is_named() -> None:
    model, (example,) = Net(), batches(1)
    for step, message in [
        (steps.Prune("wanda"), 'criterion = "wanda" needs calibration data or example inputs'),
        (steps.Prune(schedule="cubic"), 'schedule = "cubic" removes weights while training: pass train=batches'),
    ]:
        with pytest.raises(RecipeError, match=message):
            tersor.compress(model, Recipe([step]), force=True)
    with pytest.raises(PruneError, match=r"returned no loss for .*give batches with labels"):
        tersor.compress(model, Recipe([steps.Prune("fisher")]), example, force=True)
    with pytest.raises(PruneError, match="length above zero"):
        tersor.compress(model, ALONE, train=iter(batches()), force=True)
    assert type(tersor.compress(model, Recipe([steps.Prune("wanda")]), example, force=True).model.first) is SparseLinear
    with pytest.warns(UserWarning, match="no step of this recipe needs any"):
        tersor.compress(model, ALONE, calibration=batches(), force=True)
    with pytest.raises(RecipeError, match=r"step 2 .*, 'prune', can't work there: .* put it before"):
        tersor.compress(model, Recipe([steps.Quantize(), steps.Prune()]))


def test_static_ranges_and_smoothing_go_with_pruning() -> None:
    recipe = Recipe([steps.Prune(sparsity=0.5), steps.Quantize(activations="static", smooth=0.5)])
    data = batches()
    for batch in data:
        batch["x"][:, ::5] *= 40
    result = tersor.compress(Net(), recipe, data[0], calibration=data, force=True)
    assert all(module.x_scale > 0 for module in (result.model.first, result.model.second))
    assert max(row.rel_error for row in result.report.rows) < 0.1


# --- The command line.

MODULE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))

def data():
    batches = [torch.randn(32, 64) for _ in range(3)]
    return {"example_inputs": batches[0], "calibration": batches, "train": batches}
"""


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_model.py").write_text(MODULE)
    step = steps.Prune("wanda", sparsity=0.8, schedule="cubic", epochs=2)
    Recipe([step, steps.Quantize()]).to_toml(tmp_path / "recipe.toml")
    command = ["compress", "own_model:make", "--recipe", "recipe.toml", "--data", "own_model:data"]
    done = CliRunner().invoke(app, [*command, "--out", "model.tersor", "--force"])
    assert done.exit_code == 0, done.output
    assert "trained for 6 steps" in " ".join(done.output.split())
    info = tersor.inspect(tmp_path / "model.tersor")
    assert info.kinds == {"sparse_int8_linear": 2}
    assert "64x64" in info.table()
    assert info.layer_bytes < 0.25 * (64 * 64 + 64 * 8) + 2 * 4 * (64 + 8) + 4 * 2 * 64  # scales, biases, smoothing

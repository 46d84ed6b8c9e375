"""The pruner beside a training loop."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from typing import Any

import pytest
import torch
from prune_models import OPTIMISERS, Batch, check_clean, loss, net, noise, state
from torch import Tensor, nn

from tersor.errors import PruneError
from tersor.prune import Cubic, Pruner


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_masks_live_through_the_optimiser(optimiser: str, accumulate: int, bf16: bool) -> None:
    model = net()
    keys = list(model.state_dict())
    trainer = OPTIMISERS[optimiser](model.parameters())
    for batch in noise(3):  # momentum and second moments exist before the first weight goes
        loss(model, batch).backward()
        trainer.step()
    pruner = Pruner(model, sparsity=0.8, schedule=Cubic(steps=6, every=2, begin=0))
    reached = []
    batches = noise(8 * accumulate)
    for step in range(8):
        trainer.zero_grad()
        for batch in batches[step * accumulate : (step + 1) * accumulate]:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                value = loss(model, batch) / accumulate
            value.backward()
        trainer.step()
        if step > 2:
            assert int((model[5].weight == 0).sum()) < reached[-1]  # without step() the optimiser moves the zeros
        pruner.step()
        reached.append(int((model[5].weight == 0).sum()))
        assert torch.equal(model[5].weight != 0, pruner.masks()["5"])
    assert reached == sorted(reached)
    assert reached[1] == pytest.approx(0.8 * (1 - (4 / 6) ** 3) * 256 * 37, abs=4)
    result = pruner.finish()
    assert result.sparsity == pytest.approx(0.8, abs=0.002)
    assert not bool(torch.signbit(model[5].weight[model[5].weight == 0]).any())
    check_clean(model, keys)
    with pytest.raises(PruneError, match="finished"):
        pruner.step()
    with pytest.raises(PruneError, match="finished"):
        pruner.finish()


@pytest.mark.parametrize("pattern", ["1x4", "unstructured", "2:4"])
@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_gradual_counts_stay_exact_while_the_scores_change(criterion: str, pattern: str) -> None:
    model = net()
    sparsity = None if pattern == "2:4" else 0.8
    data: dict[str, Any] = {"calibration": noise(1), "loss": loss}
    pruner = Pruner(
        model, criterion=criterion, pattern=pattern, sparsity=sparsity, schedule="cubic", steps=5, exclude=["1"], **data
    )
    before = pruner.masks()
    for step in range(5):
        with torch.no_grad():
            for weight in (model[5].weight, model[8].weight):
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        pruner.step()
        part = pruner.schedule.part(step + 1)
        for layer in pruner.layers:
            mask = pruner.masks()[layer.name]
            assert not bool((mask & ~before[layer.name]).any())
            whole = pruner.pattern.limit(layer.shape) if sparsity is None else 0.8 * mask.numel()
            assert abs(int((~mask).sum()) - part * whole) <= (4 if pattern == "1x4" else 1)
        before = pruner.masks()
    pruner.finish()


def test_a_bfloat16_model_is_pruned_too() -> None:
    model = net().to(torch.bfloat16)
    result = Pruner(model, sparsity=0.5).finish()
    assert result.sparsity == pytest.approx(0.5, abs=0.001)
    assert model[5].weight.dtype == torch.bfloat16


def test_finish_before_the_end_needs_a_word() -> None:
    model = net()
    pruner = Pruner(model, sparsity=0.75, schedule="linear", steps=10)
    pruner.step()
    with pytest.raises(PruneError, match=r"ends at step 10, step\(\) was called 1 times"):
        pruner.finish()
    assert pruner.finish(force=True).sparsity == pytest.approx(0.75, abs=0.002)


def test_scopes_and_overrides() -> None:
    model = net()
    with torch.no_grad():
        model[5].weight *= 0.01  # a global comparison takes nearly all from here
    twin = copy.deepcopy(model)
    result = Pruner(model, sparsity=0.6, scope="global", overrides={"8": 0.25}).finish()
    found = {layer.name: layer for layer in result.layers}
    pool = found["1"].zeros + found["5"].zeros
    assert pool == pytest.approx(0.6 * (found["1"].weights + found["5"].weights), abs=4)
    assert found["1"].zeros == 0
    assert found["8"].sparsity == pytest.approx(0.25, abs=4 / 370)
    pruner = Pruner(twin, sparsity=0.6, scope="row", include=["5"])
    rows = pruner.masks()["5"].sum(1)
    assert set(rows.tolist()) == {100, 104}  # 102.4 of 256 stay
    assert int(rows.sum()) == pytest.approx(0.4 * 256 * 37, abs=2)
    assert pruner.skipped == {"1": "not included", "8": "not included"}


def test_tied_and_parametrized_layers_are_skipped_with_the_reason() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(10, 8), "head": nn.Linear(8, 10), "body": nn.Linear(8, 8)})
    model["head"].weight = model["embed"].weight
    model["norm"] = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    result = Pruner(model, sparsity=0.5).finish()
    assert [layer.name for layer in result.layers] == ["body"]
    assert "tied" in result.skipped["head"]
    assert "parametrized" in result.skipped["norm"]


def test_the_transposed_layer_of_transformers() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    x = torch.randn(64, 16)
    model = nn.Sequential(conv1d(12, 16))
    pruner = Pruner(model, criterion="sparsegpt", sparsity=0.5, calibration=[x])
    blocks = model[0].weight.t().reshape(12, 4, 4) != 0
    assert torch.equal(blocks.all(2), blocks.any(2))
    assert pruner.finish().sparsity == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.5}, "not between 0 and 1"),
        ({}, "needs a sparsity"),
        ({"pattern": "2:4", "sparsity": 0.8}, "has the sparsity 0.5"),
        ({"sparsity": 0.5, "scope": "model"}, "known: auto, row, layer, global"),
        ({"sparsity": 0.5, "scope": "global", "criterion": "sparsegpt"}, "layer by layer"),
        ({"sparsity": 0.5, "include": ["decoder.*"]}, "matches no module"),
        ({"sparsity": 0.5, "include": "5"}, "list of wildcards"),
        ({"sparsity": 0.5, "exclude": ["*"]}, "no layer to prune"),
        ({"sparsity": 0.5, "overrides": {"9": 0.1}}, "matches none of the layers: 1, 5, 8"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    model = net()
    before = state(model)
    with pytest.raises(PruneError, match=message):
        Pruner(model, **settings)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_training_goes_on_after_a_restart() -> None:
    def train(model: nn.Module, pruner: Pruner, batches: list[Batch]) -> None:
        for batch in batches:
            model.zero_grad()
            loss(model.eval(), batch).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad
            pruner.step()

    settings: dict[str, Any] = {"sparsity": 0.8, "schedule": "cubic", "steps": 4}
    model, other = net(), net()
    pruner = Pruner(model, **settings)
    train(model, pruner, noise(4)[:2])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "pruner": pruner.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Pruner(other, **settings)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["pruner"])
    train(model, pruner, noise(4)[2:])
    train(other, resumed, noise(4)[2:])
    assert all(torch.equal(value, state(other)[key]) for key, value in state(model).items())
    with pytest.raises(PruneError, match="other layers"):
        resumed.load_state_dict({"step": 1, "masks": {}})


def test_pruning_needs_no_compiled_part() -> None:
    code = """
import sys
sys.modules["tersor._C"] = None
import torch, tersor.prune
model = torch.nn.Linear(8, 8)
tersor.prune.Pruner(model, sparsity=0.5).finish()
assert int((model.weight == 0).sum()) == 32
assert not any(name.startswith("tersor.nn") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_scores_are_not_taken_from_a_broken_weight() -> None:
    model = nn.Linear(8, 8)
    with torch.no_grad():
        model.weight[0, 0] = Tensor([float("nan")])[0]
    with pytest.raises(PruneError, match="NaN"):
        Pruner(model, sparsity=0.5)

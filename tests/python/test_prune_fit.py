"""The built-in loop on real digits, and the sensitivity scan."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from prune_models import OPTIMISERS, Batch, accuracy, check_clean, digits, loss, net, noise, state
from torch import Tensor, nn

from tersor.errors import PruneError
from tersor.prune import Pruner, Sensitivity, fit, sensitivity_scan


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def test_fit_on_real_digits_recovers_what_one_shot_loses() -> None:
    batches, test = digits()
    model = mlp()
    trainer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in batches * 6:
        trainer.zero_grad()
        loss(model, batch).backward()
        trainer.step()
    whole = accuracy(model, test)
    once = copy.deepcopy(model)
    Pruner(once, sparsity=0.8).finish()
    keys = list(model.state_dict())
    settings: dict[str, Any] = {"criterion": "wanda", "optimizer": OPTIMISERS["adamw"], "progress": False}
    result = fit(model, batches, loss, epochs=10, sparsity=0.8, **settings)
    check_clean(model, keys)
    assert result.sparsity == pytest.approx(0.8, abs=0.005)
    assert len(result.losses) == 10 * len(batches)
    assert whole > 0.93
    assert accuracy(model, test) > whole - 0.03
    assert accuracy(model, test) > accuracy(once, test) + 0.05


@pytest.mark.parametrize("schedule", ["one_shot", "linear"])
def test_fit_with_accumulation_and_autocast(schedule: str) -> None:
    model = net().eval()
    result = fit(
        model,
        noise(7),
        loss,
        epochs=2,
        accumulate=3,
        autocast=torch.bfloat16,
        schedule=schedule,
        sparsity=0.6,
        optimizer=OPTIMISERS["sgd momentum"],
        progress=False,
    )
    assert len(result.losses) == 6
    assert result.sparsity == pytest.approx(0.6, abs=0.002)
    assert not any(module.training for module in model.modules())

    def zero(model: nn.Module, batch: Batch) -> Tensor:
        return loss(model, batch) * 0

    fit(model, noise(), loss, criterion="fisher", criterion_loss=loss, sparsity=0.5, progress=False)
    with pytest.raises(PruneError, match="no gradient"):
        fit(net(), noise(), loss, criterion="fisher", criterion_loss=zero, sparsity=0.5, progress=False)
    with pytest.raises(PruneError, match="length"):
        fit(model, iter(noise()), loss, sparsity=0.5)
    with pytest.raises(PruneError, match="epochs"):
        fit(model, noise(), loss, sparsity=0.5, epochs=0)


def test_scan_finds_the_sensitive_layer_and_proposes() -> None:
    model = mlp()
    batches, test = digits()
    for _ in range(2):
        fit(model, batches, loss, sparsity=0.0, progress=False)
    before = state(model)

    def evaluate(judged: nn.Module) -> float:
        return -accuracy(judged, test)

    found = sensitivity_scan(model, evaluate, sparsities=(0.5, 0.9))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert found.baseline == evaluate(model)
    assert set(found.curves) == {"0", "2"}
    for curve in found.curves.values():
        assert found.baseline <= curve[0.5] + 0.01 < curve[0.9] + 0.02
    proposal = found.propose(0.6)
    assert sum(proposal[name] * found.weights[name] for name in proposal) == pytest.approx(0.6 * (4096 + 640))
    assert Pruner(model, sparsity=0.6, overrides=proposal).finish().sparsity == pytest.approx(0.6, abs=0.003)
    with pytest.raises(PruneError, match=r"reaches 0\.900"):
        found.propose(0.95)


def test_propose_takes_the_cheap_weights_first() -> None:
    curves = {"a": {0.5: 1.0, 0.9: 9.0}, "b": {0.5: 1.1, 0.9: 1.2}}
    found = Sensitivity(1.0, {"a": 100, "b": 100}, curves)
    assert found.propose(0.25) == {"a": 0.5, "b": 0.0}
    assert found.propose(0.70) == {"a": 0.5, "b": 0.9}
    assert found.propose(0.80)["a"] == pytest.approx(0.7)


@pytest.mark.parametrize("criterion", ["sparsegpt", "fisher"])
def test_scan_by_the_mean_loss(criterion: str) -> None:
    model = net()
    before = state(model)
    found = sensitivity_scan(model, criterion=criterion, sparsities=[0.5], calibration=noise(1), loss=loss)
    assert set(found.curves) == {"1", "5", "8"}
    assert all(curve[0.5] != found.baseline for curve in found.curves.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(PruneError, match="evaluate"):
        sensitivity_scan(model)

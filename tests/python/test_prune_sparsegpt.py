"""SparseGPT against optimal brain surgery written down, and the order of quality that the literature expects."""

from __future__ import annotations

import pytest
import torch
from prune_models import loss, net, noise
from torch import Tensor, nn

from tersor.prune import Pruner, SparseGPT
from tersor.prune.criteria.sparsegpt import eliminate
from tersor.prune.layers import PrunableLayer
from tersor.prune.patterns import NofM, Unstructured


def correlated(tokens: int = 400, inputs: int = 48) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(inputs // 4, inputs, generator=generator)
    x = torch.randn(tokens, inputs // 4, generator=generator) @ mix
    return (x + 0.3 * torch.randn(tokens, inputs, generator=generator)) * torch.logspace(-1, 1, inputs)[None]


def brain_surgeon(weight: Tensor, second: Tensor, count: int) -> Tensor:
    """Optimal brain surgery written down: choose once, then eliminate column by column, inverting what is left."""
    weight, second = weight.double().clone(), second.double()
    columns = weight.shape[1]
    inverses = [torch.linalg.inv(second[j:, j:]) for j in range(columns)]
    costs = weight**2 / torch.stack([inverse[0, 0] for inverse in inverses])
    gone = torch.zeros_like(weight, dtype=torch.bool).flatten()
    gone[costs.flatten().argsort()[:count]] = True
    gone = gone.reshape(weight.shape)
    for j, inverse in enumerate(inverses):
        step = torch.where(gone[:, j], weight[:, j] / inverse[0, 0], 0.0)
        weight[:, j:] -= step[:, None] * inverse[0]
        weight[gone[:, j], j] = 0.0
    return weight


@pytest.mark.parametrize("block", [48, 128])
def test_sparsegpt_is_optimal_brain_surgery(block: int) -> None:
    x = correlated()
    second = x.T @ x / len(x)
    second += 0.01 * second.diagonal().mean() * torch.eye(48)
    layer = PrunableLayer("x", nn.Linear(48, 16))
    weight = layer.matrix()
    criterion = SparseGPT(block=block)
    statistics = criterion.statistics(layer)
    statistics.see_input(x[None, :150])
    statistics.see_input(x[None, 150:])
    held = torch.ones(16, 48, dtype=torch.bool)
    stays, found = criterion.solve(layer, statistics, Unstructured(), 400, held)
    expected = brain_surgeon(weight, second, 400)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(stays, expected != 0)


def test_delayed_updates_change_nothing() -> None:
    x = correlated()
    layer = PrunableLayer("x", nn.Linear(48, 16))
    criterion = SparseGPT()
    statistics = criterion.statistics(layer)
    statistics.see_input(x[None])
    factor = criterion._factor(statistics.gram[0], "x")
    found = []
    for block in (4, 12, 48):  # N:M chooses every 4 columns whatever the block is
        weight = layer.matrix()
        stays = eliminate(weight, factor, NofM(), 384, torch.ones(16, 48, dtype=torch.bool), block)
        found.append((weight, stays))
    for weight, stays in found[1:]:
        torch.testing.assert_close(weight, found[0][0], rtol=1e-4, atol=1e-5)
        assert torch.equal(stays, found[0][1])


@pytest.mark.parametrize("pattern", ["unstructured", "1x4", "2:4"])
def test_order_of_quality_on_correlated_inputs(pattern: str) -> None:
    """The literature's order of output errors: sparsegpt <= wanda <= magnitude (<= random)."""
    x = correlated()
    torch.manual_seed(5)
    start = nn.Linear(48, 32)
    errors = {}
    for name in ("sparsegpt", "wanda", "magnitude", "random"):
        model = nn.Linear(48, 32)
        model.load_state_dict(start.state_dict())
        sparsity = 0.5 if pattern != "2:4" else None
        Pruner(model, criterion=name, pattern=pattern, sparsity=sparsity, calibration=list(x.split(100))).finish()
        errors[name] = float((model(x) - start(x)).detach().norm() / start(x).detach().norm())
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"] < errors["random"], errors


def test_sparsegpt_copes_with_dead_and_equal_inputs() -> None:
    x = correlated()
    x[:, 3] = 0
    x[:, 7] = x[:, 8]
    model = nn.Linear(48, 8)
    Pruner(model, criterion="sparsegpt", sparsity=0.5, calibration=[x[:5]]).finish()
    assert bool(torch.isfinite(model.weight).all())


def test_sparsegpt_layer_by_layer_sees_the_layers_pruned_before() -> None:
    def pruned(memory: int, *includes: list[str]) -> nn.Module:
        model = net()
        for include in includes:
            settings = {"criterion": "sparsegpt", "sparsity": 0.6, "calibration": noise(), "loss": loss}
            Pruner(model, include=include, memory=memory, **settings).finish()  # type: ignore[arg-type]
        return model

    at_once, in_order = pruned(2**30, ["5", "8"]), pruned(1, ["5", "8"])
    by_hand = pruned(2**30, ["5"], ["8"])
    assert torch.equal(in_order[8].weight, by_hand[8].weight)
    assert torch.equal(at_once[5].weight, in_order[5].weight)
    assert not torch.equal(at_once[8].weight, in_order[8].weight)

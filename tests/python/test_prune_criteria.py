"""Every criterion keeps the same promises; each one's formula is checked against a plain computation."""

from __future__ import annotations

import math

import pytest
import torch
from prune_models import Batch, hooks, loss, net, noise, state
from torch import Tensor, nn

from tersor.errors import PruneError
from tersor.prune import CRITERIA, Criterion, Entropy, Gradient, Pruner, find_layers, register_criterion
from tersor.prune.calibration import Calibration, gather
from tersor.prune.criteria.entropy import Histograms
from tersor.prune.criteria.registry import Statistics
from tersor.prune.layers import PrunableLayer
from tersor.prune.patterns import parse_pattern

NAMES = sorted(CRITERIA)


def scores(model: nn.Module, criterion: Criterion, batches: list[Batch] | None = None) -> dict[str, Tensor]:
    layers, _ = find_layers(model)
    data = Calibration(batches or noise(), loss)
    return {
        layer.name: criterion.scores(layer, statistics)
        for portion in gather(model, layers, criterion, data)
        for layer, statistics in portion
    }


def test_all_the_criteria_are_there() -> None:
    assert NAMES == ["entropy", "fisher", "gradient", "magnitude", "random", "sparsegpt", "wanda"]


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_repeatable_and_leave_no_trace(name: str) -> None:
    model = net()
    before = state(model)
    first, second = scores(model, CRITERIA[name]()), scores(model, CRITERIA[name]())
    for layer in find_layers(model)[0]:
        score = first[layer.name]
        assert score.shape == layer.shape
        assert score.dtype == torch.float32
        assert bool(torch.isfinite(score).all())
        assert float(score.min()) >= 0
        assert float(score.max()) > float(score.min())
        assert torch.equal(score, second[layer.name])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert hooks(model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("pattern", ["unstructured", "1x4", "4x1", "2:4"])
@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_reaches_what_was_asked(name: str, pattern: str) -> None:
    model = net()
    sparsity = None if ":" in pattern else 0.7
    pruner = Pruner(
        model, criterion=name, pattern=pattern, sparsity=sparsity, calibration=noise(), loss=loss, overrides={"8": 0}
    )
    masks = pruner.masks()
    result = pruner.finish()
    shape = parse_pattern(pattern)
    for layer, found in zip(pruner.layers, result.layers, strict=True):
        asked = 0 if layer.name == "8" else shape.limit(layer.shape) if sparsity is None else 0.7 * found.weights
        assert abs(found.zeros - asked) <= shape.rows * (1 if ":" in pattern else shape.cols)
        assert torch.equal(layer.matrix() != 0, masks[layer.name])
        if ":" in pattern and layer.name != "8":
            whole = layer.shape[1] // 4 * 4
            assert int(masks[layer.name][:, :whole].reshape(-1, 4).sum(1).max()) == 2
    assert hooks(model) == 0


@pytest.mark.parametrize("name", [name for name in NAMES if CRITERIA[name].needs != "nothing"])
def test_missing_and_bad_data_are_named(name: str) -> None:
    with pytest.raises(PruneError, match="needs calibration data"):
        Pruner(net(), criterion=name, sparsity=0.5)
    with pytest.raises(PruneError, match="no batch"):
        Pruner(net(), criterion=name, sparsity=0.5, calibration=[], loss=loss)
    with pytest.raises(PruneError, match="only once"):
        Pruner(net(), criterion=name, sparsity=0.5, calibration=iter(noise()), loss=loss)
    model = net()
    before = state(model)
    bad = [noise()[0], (torch.ones(2, 3), torch.ones(2))]
    with pytest.raises(PruneError, match="failed on calibration batch 2"):
        Pruner(model, criterion=name, sparsity=0.5, calibration=bad, loss=loss)
    with pytest.raises(PruneError, match="NaN or inf"):
        Pruner(
            model,
            criterion=name,
            sparsity=0.5,
            calibration=[(torch.full((4, 64), math.nan), noise()[0][1][:4])],
            loss=loss,
        )
    assert hooks(model) == 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_layer_that_is_never_used_is_named() -> None:
    model = net()
    model.register_module("spare", nn.Linear(4, 4))

    def skip(_: nn.Module, batch: Batch) -> Tensor:
        return loss(nn.Sequential(*list(model.children())[:-1]), batch)

    with pytest.raises(PruneError, match="spare was never used"):
        Pruner(model, criterion="wanda", sparsity=0.5, calibration=noise(), loss=skip)


def test_unknown_names_and_clashes_are_loud() -> None:
    with pytest.raises(PruneError, match="unknown criterion 'magnitud'; known: entropy, fisher"):
        Pruner(net(), criterion="magnitud", sparsity=0.5)

    class Other(Criterion):
        name = "magnitude"

        def scores(self, layer: PrunableLayer, statistics: Statistics) -> Tensor:
            return layer.matrix()

    with pytest.raises(ValueError, match=r"belongs to tersor\.prune\.criteria\.magnitude\.Magnitude"):
        register_criterion(Other)


def test_gradient_and_fisher_formulas() -> None:
    model, batches = net().eval(), noise()
    layer = model[5]
    grads = [torch.autograd.grad(loss(model, batch), layer.weight)[0] for batch in batches]
    mean = sum(grads) / 3
    close = torch.testing.assert_close
    close(scores(model, Gradient())["5"], (mean * layer.weight).abs().detach())
    close(scores(model, Gradient(mode="gradient"))["5"], mean.abs())
    close(scores(model, CRITERIA["fisher"]())["5"], sum(g * g for g in grads) / 3 * layer.weight.detach() ** 2 / 2)
    with pytest.raises(PruneError, match="taylor, gradient"):
        Gradient(mode="x")  # type: ignore[arg-type]


def test_wanda_formula_on_a_grouped_convolution() -> None:
    model, batches = net().eval(), noise()
    x = torch.cat([batch[0] for batch in batches]).reshape(-1, 2, 4, 8)
    rows = nn.functional.unfold(x, 3, padding=1)  # [n, 2 * 9, places]
    norms = rows.square().sum(dim=(0, 2)).sqrt().reshape(2, 9).repeat_interleave(4, 0)
    torch.testing.assert_close(
        scores(model, CRITERIA["wanda"]())["1"], model[1].weight.detach().flatten(1).abs() * norms
    )


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=2, groups=2, padding_mode="circular"),
        nn.Conv1d(4, 6, 3, padding=1, groups=2),
        nn.Linear(5, 3),
    ],
)
def test_input_rows_times_the_matrix_is_the_layer(module: nn.Module) -> None:
    layer = PrunableLayer("x", module)
    x = torch.randn({nn.Conv2d: (2, 4, 9, 8), nn.Conv1d: (2, 4, 9), nn.Linear: (2, 7, 5)}[type(module)])
    rows = layer.input_rows(x)
    y = rows @ layer.matrix().reshape(layer.groups, -1, layer.shape[1]).mT  # [groups, tokens, out / groups]
    want = module(x) - module.bias.reshape(-1, *[1] * (x.ndim - 2 if not isinstance(module, nn.Linear) else 0))
    want = (
        want.reshape(1, -1, 3)
        if isinstance(module, nn.Linear)
        else want.flatten(2).transpose(1, 2).reshape(-1, layer.groups, 3).transpose(0, 1)
    )
    torch.testing.assert_close(y, want.detach())


def test_entropy_of_known_distributions() -> None:
    layer = PrunableLayer("x", nn.Linear(5, 1))
    seen = Histograms(layer, 64)
    x = torch.rand(2, 20000, 5, generator=torch.Generator().manual_seed(0))
    x[..., 1] *= 3  # uniform on [0, 3]
    x[..., 2] = 1000  # constant
    x[..., 3] = torch.randn(2, 20000, generator=torch.Generator().manual_seed(1))
    x[..., 4] = (x[..., 4] > 0.5).float()  # two values: discrete, so next to nothing
    for batch in x:
        for rows in (batch[:1], batch[1:]):  # the first call holds one token, so the ranges have to grow
            seen.see_input(rows[None])
    assert int(seen.counts.sum()) == 2 * 20000 * 5
    spread = seen.spread()[0]
    expected = torch.tensor([1.0, 3.0, 0.0, math.sqrt(2 * math.pi * math.e)])
    torch.testing.assert_close(spread[:4], expected, rtol=0.05, atol=0)
    assert float(spread[4]) < 0.1
    with pytest.raises(PruneError, match="power of two"):
        Entropy(bins=48)


def test_little_memory_means_more_passes_and_the_same_scores() -> None:
    passes = []

    def counted(model: nn.Module, batch: Batch) -> Tensor:
        passes.append(1)
        return loss(model, batch)

    masks = []
    for memory in (2**30, 1):
        passes.clear()
        masks.append(
            Pruner(net(), criterion="wanda", sparsity=0.5, calibration=noise(), loss=counted, memory=memory).masks()
        )
        assert len(passes) == (3 if memory > 1 else 9)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])

"""Smoothing within compress: what it is based on, which layers get it, what the report says."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor import CompressionResult, Recipe, SwapError, compress, steps
from tersor.calibrate import SMOOTHING_BATCHES
from tersor.nn import Int8Linear
from tersor.quantize import RowSample, input_scale

DYNAMIC = Recipe([steps.Quantize()])
STATIC = Recipe([steps.Quantize(activations="static")])
PLAIN = Recipe([steps.Quantize(smooth=0)])
WIDTH = 48


class Net(nn.Module):
    """Two layers, and one that is called for inputs of more than 8 rows only.

    The first has small weights where `outliers` is large, as trained models do.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second, self.rare = nn.Linear(WIDTH, 32), nn.Linear(32, 8), nn.Linear(8, 8)
        with torch.no_grad():
            self.first.weight[:, ::11] /= 50

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return self.rare(y) if len(x) > 8 else y


def outliers(rows: int = 8, seed: int = 0) -> Tensor:
    """Every 11th channel is 50 times as large as the others."""
    x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    x[:, ::11] *= 50
    return x


def run(recipe: Recipe = DYNAMIC, example: Any = None, **settings: Any) -> CompressionResult[Net]:
    return compress(Net(), recipe, example, force=True, progress=False, **settings)


def scale_of(layer: nn.Module) -> Tensor:
    assert isinstance(layer, Int8Linear)
    return layer.canonical_tensors()["input_scale"]


def expected_scale(x: Tensor, alpha: float = 0.5) -> Tensor:
    return input_scale(Net().first.weight.detach().abs().amax(0), x.abs().amax(0), alpha)


def errors(result: CompressionResult[Net]) -> dict[str, float | None]:
    return {row.name: row.rel_error for row in result.report.rows}


def test_smoothing_is_by_the_example_inputs() -> None:
    x = outliers()
    result, plain = run(example=x), run(PLAIN, x)
    assert torch.equal(scale_of(result.model.first), expected_scale(x))
    assert result.report.totals.output_error < 0.5 * plain.report.totals.output_error
    assert errors(result)["first"] < 0.5 * errors(plain)["first"]
    assert not plain.model.first.smoothed
    assert plain.report.notes == ()
    assert "those whose error on the example inputs it reduces" in result.report.notes[0]
    both = torch.cat([x, 3 * outliers(seed=1)])
    assert torch.equal(scale_of(run(example=x, other_inputs=[both[8:]]).model.first), expected_scale(both))
    assert torch.equal(
        scale_of(run(Recipe([steps.Quantize(smooth=0.75)]), x).model.first), expected_scale(x, alpha=0.75)
    )


def test_calibration_goes_before_the_example_inputs() -> None:
    batches = [outliers(seed=seed).roll(3, 1) for seed in range(3)]
    result = run(example=outliers(), calibration=batches)
    assert torch.equal(scale_of(result.model.first), expected_scale(torch.cat(batches)))
    assert "of 2 layers, those whose error on the calibration data it reduces" in result.report.notes[0]
    assert result.report.warnings == ()
    # A layer that the calibration data doesn't reach stays without.
    result = run(example=outliers(rows=9), calibration=batches)
    assert len(result.report.swapped) == 3
    assert not result.model.rare.smoothed
    assert "of 3 layers" in result.report.notes[0]


def test_without_inputs_there_is_no_smoothing_and_the_report_says_so() -> None:
    result = run()
    assert not any(layer.smoothed for layer in result.model.modules() if isinstance(layer, Int8Linear))
    assert result.report.notes == (
        "no smoothing, for want of inputs; with example_inputs or calibration, errors are smaller",
    )


def test_static_ranges_are_those_of_the_smoothed_input() -> None:
    batches = [outliers(seed=seed) for seed in range(3)]
    layer = run(STATIC, calibration=batches).model.first
    product = torch.cat(batches) * scale_of(layer)
    low, high = float(product.min()), float(product.max())
    assert layer.x_scale == (high - low) / 255
    assert layer.x_zero_point == round(-low / layer.x_scale)
    smoothed, plain = (
        run(Recipe([steps.Quantize(activations="static", smooth=alpha)]), batches[0], calibration=batches)
        for alpha in (0.5, 0)
    )
    assert smoothed.report.totals.output_error < 0.5 * plain.report.totals.output_error


def test_only_where_it_reduces_the_error() -> None:
    """One row of 64 is large in one channel: smoothing helps that row, and the weight is coarser for all."""
    x = torch.rand(64, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x[0, 5] = 10
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 16))
    c = input_scale(model[0].weight.detach().abs().amax(0), x.abs().amax(0))

    def error(layer: nn.Module) -> float:
        with torch.no_grad():
            return float((layer(x) - model(x)).norm())

    plain, smoothed = Int8Linear.from_float(model[0]), Int8Linear.from_float(model[0], input_scale=c)
    assert error(plain) < 0.9 * error(smoothed)
    for recipe in (DYNAMIC, STATIC):
        chosen = compress(model, recipe, x, calibration=[x], force=True)
        assert chosen.model[0].smoothed == (recipe is STATIC)
        assert f"{int(recipe is STATIC)} of 1 layers" in chosen.report.notes[0]
    x[:, 5] = 10
    assert compress(model, DYNAMIC, x, force=True).model[0].smoothed


def test_batches_are_streamed_capped_and_not_kept() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def endless() -> Iterator[Tensor]:
        while True:
            assert sum(ref() is not None for ref in alive) <= 1
            x = outliers(seed=len(alive))
            alive.append(weakref.ref(x))
            yield x
            del x

    run(calibration=endless())
    assert len(alive) == SMOOTHING_BATCHES
    everything = [outliers(seed=seed) for seed in range(SMOOTHING_BATCHES)]
    everything += [100 * outliers(seed=99)]  # static ranges look at all batches
    layer = run(Recipe([steps.Quantize(activations="static", smooth=0)]), calibration=everything).model.first
    assert layer.x_scale * 255 > 1.5 * float(everything[-1].max())


def test_inputs_that_are_not_finite() -> None:
    x = outliers()
    x[2, 5] = float("nan")
    with pytest.raises(SwapError, match="first was given NaN or infinity in calibration batch 1"):
        run(calibration=[outliers(), x])
    result = run(example=x)
    assert not result.model.first.smoothed
    assert torch.isfinite(result.model(outliers())).all()


def test_the_same_inputs_give_the_same_layers() -> None:
    one, other = (run(calibration=[outliers(seed=1), outliers(seed=2)]).model.state_dict() for _ in range(2))
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_models(dtype: torch.dtype) -> None:
    x = outliers().to(dtype)
    result, plain = (compress(Net().to(dtype), recipe, x, force=True) for recipe in (DYNAMIC, PLAIN))
    assert result.model.first.smoothed
    assert scale_of(result.model.first).dtype == torch.float32
    assert result.report.totals.output_error < 0.7 * plain.report.totals.output_error


def test_row_sample_is_uniform() -> None:
    """1000 samples of 8 out of 64 rows: each row is kept 125 times, give or take 6 standard deviations (10.5)."""
    counts = torch.zeros(64)
    rows = torch.arange(64.0)[:, None]
    for seed in range(1000):
        sample = RowSample(1, torch.float32, size=8)
        sample._generator.manual_seed(seed)
        for part in rows.split([1, 20, 3, 40]):
            sample.add(part)
        assert len(sample.rows.unique()) == 8
        counts[sample.rows[:, 0].long()] += 1
    assert counts.sum() == 8000
    assert (counts - 125).abs().max() < 63
    few = RowSample(3, torch.bfloat16)
    few.add(torch.ones(2, 5, 3))
    few.add(torch.empty(0, 3))
    assert few.rows.shape == (10, 3)
    assert few.rows.dtype == torch.bfloat16

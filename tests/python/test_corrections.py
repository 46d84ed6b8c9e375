"""Every correction of the registry lowers the error it is about; GPTQ equals its definition."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tersor import SwapError
from tersor.quantize.codebooks import CODEBOOKS, decode, make_codebook
from tersor.quantize.codebooks.codes import nearest
from tersor.quantize.corrections import (
    CORRECTIONS,
    Correction,
    LayerProblem,
    Smoothing,
    Solution,
    make_correction,
    register_correction,
    solve,
)
from tersor.quantize.corrections.gptq import round_columns
from tersor.quantize.corrections.smoothing import lowered_peaks
from tersor.quantize.moments import InputMoments, input_moments, portions
from tersor.quantize.simulation import fake_quantize
from tersor.quantize.smoothing import input_scale
from tersor.second_order import inverse_factor

NAMES = sorted(CORRECTIONS)
DYNAMIC = [name for name in NAMES if name != "range"]


def correlated(rows: int, channels: int = 48, seed: int = 0) -> Tensor:
    """Inputs with a mean, channels of different sizes, and much in common."""
    mixing = torch.Generator().manual_seed(99)
    mix = torch.randn(8, channels, generator=mixing) + 0.3 * torch.randn(channels, generator=mixing).exp()
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(rows, channels, generator=generator) * torch.logspace(-1, 1, channels)
    return torch.randn(rows, 8, generator=generator) @ mix + 0.5 * own + 1.0


def problem(book: str = "linear", bits: int = 4, group_size: int | None = None, out: int = 24) -> LayerProblem:
    moments = InputMoments(48)
    for seed in range(3):
        moments.add(correlated(100, seed=seed))
    weight = torch.randn(out, 48, generator=torch.Generator().manual_seed(7)) * 0.1
    return LayerProblem(weight, moments, make_codebook(book), bits, group_size)


def output_error(made: LayerProblem, solution: Solution, x: Tensor) -> float:
    """Measured the plain way, without quantised activations."""
    scale = 1 if solution.input_scale is None else solution.input_scale
    y = (x * scale) @ decode(solution.codes).t() + (0 if solution.bias is None else solution.bias)
    expected = x @ made.weight.t()
    return float((y - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.parametrize(("book", "group_size"), [("linear", None), ("linear", 32), ("affine", 32), ("kmeans", None)])
def test_a_correction_lowers_the_error_on_other_inputs_of_the_kind(
    name: str, book: str, group_size: int | None
) -> None:
    made = problem(book, 3, group_size)
    plain = made.fit()
    better = make_correction(name).apply(made, plain)
    better.codes.check()
    x = correlated(400, seed=50)
    assert output_error(made, better, x) < output_error(made, plain, x)
    assert made.error(better) < made.error(plain)


def spiked(rows: int = 300, spike: float = 60.0) -> Tensor:
    """Inputs of one size, but for two channels that are seldom, and then far, larger: as behind a GELU."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(rows, 48, generator=generator).relu()
    x[::25, 3], x[::40, 17] = spike, spike / 2
    return x


def static_problem(x: Tensor, out: int = 100) -> LayerProblem:
    moments = InputMoments(48)
    moments.add(x)
    weight = torch.randn(out, 48, generator=torch.Generator().manual_seed(7)) * 0.1
    return LayerProblem(weight, moments, make_codebook("linear"), 8, None, moments.channels.x_range)


def static_error(made: LayerProblem, solution: Solution, x: Tensor) -> float:
    """Of the whole layer on integers of 8 bits, measured the plain way."""
    scaled = x if solution.input_scale is None else x * solution.input_scale
    y = fake_quantize(scaled, *made.range_of(solution)) @ decode(solution.codes).t()
    y = y if solution.bias is None else y + solution.bias
    expected = x @ made.weight.t()
    return float((y - expected).norm() / expected.norm())


def test_smoothing_lowers_the_peaks_of_few_channels_where_that_is_better_than_smoothing_all() -> None:
    x = spiked()
    made = static_problem(x)
    plain = made.fit()
    found = make_correction("smoothing").apply(made, plain)
    assert found.input_scale is not None
    assert static_error(made, found, x) < static_error(made, plain, x) / 2
    lowered = (found.input_scale < 1).nonzero().flatten().tolist()
    assert {3, 17} <= set(lowered)
    for alpha in Smoothing.alphas:
        scale = input_scale(made.weight.abs().amax(0), x.abs().amax(0), alpha)
        assert static_error(made, found, x) <= static_error(made, made.fit(scale), x) * 1.02


def test_lowered_peaks_are_those_of_the_second_largest_the_fourth_and_so_on() -> None:
    peak = torch.tensor([1.0, 8.0, 2.0, 4.0, 0.0, 1.0, 1.0, 3.0])
    second, fourth = lowered_peaks(peak)
    assert torch.equal(peak * second, peak.clamp_max(4))
    assert torch.equal(peak * fourth, peak.clamp_max(2))
    assert list(lowered_peaks(torch.ones(8))) == list(lowered_peaks(torch.zeros(8))) == []
    assert list(lowered_peaks(torch.ones(1))) == []


def test_a_range_leaves_out_what_hardly_meets_a_weight() -> None:
    x = spiked()
    made = static_problem(x)
    made.weight[:, [3, 17]] *= 1e-3  # what is clipped in these channels is no loss
    plain = made.fit()
    found = make_correction("range").apply(made, plain)
    assert found.x_range is not None
    assert found.x_range[0] < 0.5 * made.range_of(plain)[0]
    assert static_error(made, found, x) < 0.6 * static_error(made, plain, x)
    made.weight[:, [3, 17]] *= 1e6  # and here it would be all
    assert make_correction("range").apply(made, made.fit()).x_range is None


def test_bias_takes_back_what_a_clipped_range_adds() -> None:
    x = spiked(spike=0.0)
    made = static_problem(x)
    x_range = (1.0 / 255, 0)
    clipped = replace(made.fit(), x_range=x_range)
    solution = make_correction("bias").apply(made, clipped)
    assert solution.bias is not None
    y = fake_quantize(x, *x_range) @ decode(clipped.codes).t() - x @ made.weight.t()  # all rows are sampled
    assert torch.allclose(-y.mean(0), solution.bias, atol=1e-5)
    assert made.error(solution) == pytest.approx(static_error(made, solution, x), rel=0.05)
    assert made.error(solution) < made.error(clipped)


@pytest.mark.parametrize("book", sorted(CODEBOOKS))
@pytest.mark.parametrize("group_size", [None, 32])
def test_all_corrections_work_with_all_code_books(book: str, group_size: int | None) -> None:
    solved = solve(problem(book, 4, group_size), NAMES)
    solved.solution.codes.check()
    assert solved.error < solved.plain
    assert set(solved.helped) <= set(NAMES) == set(solved.errors)
    assert "gptq" in solved.helped


def test_the_error_is_that_of_the_outputs() -> None:
    made = problem()
    x = torch.cat([correlated(100, seed=seed) for seed in range(3)])
    made.moments.sample.rows = x  # all of them, so that nothing is left to chance
    for solution in (made.fit(), solve(made, ["awq", "gptq", "bias"]).solution):
        exact = output_error(made, solution, x)
        activations = made.error(solution)
        # 8-bit activations add a part of their own, which is small beside that of 4-bit weights.
        assert exact < activations < exact * 1.1


def test_gptq_is_its_definition() -> None:
    """Rounding one weight at a time, the others re-solved each time by the normal equations."""
    made = problem("linear", 3, 16, out=4)
    plain = made.fit()
    gram = made.moments.gram.double() + 0.01 * float(made.moments.gram.diagonal().mean()) * torch.eye(48).double()
    order = made.moments.gram.diagonal().argsort(descending=True)
    table, scale = plain.codes.table, plain.codes.scale
    left, done = made.weight.double().clone(), []
    for column in order.tolist():
        done.append(column)
        units = (left[:, column] / scale[:, column // 16]).float()
        value = table[nearest(units[:, None], table)[:, 0].long()] * scale[:, column // 16]
        error = value.double() - left[:, column]
        free = [index for index in range(48) if index not in done]
        left[:, column] = value.double()
        if free:
            # The change of the free weights that makes up best: H_ff d = -H_fc error.
            left[:, free] -= error[:, None] * torch.linalg.solve(gram[free][:, free], gram[free, column])
    found = make_correction("gptq").apply(made, plain)
    assert torch.allclose(decode(found.codes).double(), left, atol=1e-6)


def test_gptq_without_correlation_is_rounding_to_the_nearest() -> None:
    made = problem()
    plain = made.fit().codes
    order = torch.arange(48).flip(0)
    again = round_columns(made.weight, plain, order, inverse_factor(torch.eye(48), 1e-6))
    assert torch.equal(again.codes, plain.codes)


def test_bias_correction_takes_the_mean_error_away() -> None:
    made = problem(bits=2)
    solution = make_correction("bias").apply(made, made.fit())
    x = torch.cat([correlated(100, seed=seed) for seed in range(3)])
    assert solution.bias is not None
    off = x @ decode(solution.codes).t() + solution.bias - x @ made.weight.t()
    assert torch.allclose(off.mean(0), torch.zeros(24), atol=1e-4)


def test_awq_leaves_alone_what_it_cannot_improve() -> None:
    moments = InputMoments(16)
    moments.add(torch.eye(16) * 4)
    codes = torch.randint(-8, 8, (8, 16), generator=torch.Generator().manual_seed(1))
    codes[:, 0] = -8
    made = LayerProblem(codes.float(), moments, make_codebook("linear"), 4)
    solved = solve(made, ["awq"])
    assert solved.solution.input_scale is None
    assert solved.helped == []
    assert solved.error == solved.plain


def test_inputs_of_zeros_and_dead_channels_are_fine() -> None:
    moments = InputMoments(48)
    moments.add(torch.zeros(5, 48))
    weight = torch.randn(3, 48)
    made = LayerProblem(weight, moments, make_codebook("linear"), 4)
    solved = solve(made, NAMES)
    solved.solution.codes.check()
    assert solved.error == 0
    x = correlated(50)
    x[:, ::3] = 0
    dead = InputMoments(48)
    dead.add(x)
    assert solve(LayerProblem(weight, dead, make_codebook("nf4"), 4, 32), NAMES).error < 0.2


def test_moments_are_those_of_all_rows_in_any_order() -> None:
    x = correlated(60)
    one, other = InputMoments(48), InputMoments(48)
    one.add(x.reshape(6, 10, 48))
    for part in x.flip(0).split([1, 0, 40, 19]):
        other.add(part)
    for moments in (one, other):
        assert moments.count == 60
        assert torch.allclose(moments.gram, x.t() @ x / 60, rtol=1e-4, atol=1e-3)
        assert torch.allclose(moments.mean, x.mean(0), rtol=1e-4, atol=1e-4)


def test_moments_are_collected_from_a_model_in_portions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 4))
    layers: dict[str, nn.Module] = {"0": model[0], "2": model[2], "lost": nn.Linear(3, 3)}
    found = input_moments(model, layers, [correlated(5), correlated(7)])
    assert sorted(found) == ["0", "2"]
    assert found["2"].count == 12
    with pytest.raises(SwapError, match="0 was given NaN or infinity in calibration batch 1"):
        input_moments(model, layers, [correlated(5), correlated(7) * math.nan])
    with pytest.raises(SwapError, match="no batch"):
        input_moments(model, layers, [])
    assert list(portions({"a": 100, "b": 100, "c": 10}, memory=300_000)) == [["a"], ["b", "c"]]
    assert list(portions({"a": 10_000}, memory=1)) == [["a"]]


def test_unknown_and_taken_names_are_errors() -> None:
    with pytest.raises(ValueError, match="known: adaround, awq, bias, gptq"):
        solve(problem(), ["gptq2"])
    with pytest.raises(ValueError, match="belongs to"):
        register_correction(type("Mine", (Correction,), {"name": "gptq"}))

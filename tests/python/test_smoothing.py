"""The smoothing formula and the observer that feeds it."""

from __future__ import annotations

import math

import numpy_reference as reference
import pytest
import torch
from torch import Tensor

from tersor.quantize import ChannelRange, dequantize_s8, fake_quantize, input_scale, linear_error, quantize_s8
from tersor.quantize.smoothing import LARGEST_RATIO, SMALLEST_SCALE

MAX = torch.finfo(torch.float32).max


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.75, 1.0])
def test_is_the_formula_up_to_a_factor(alpha: float) -> None:
    generator = torch.Generator().manual_seed(1)
    w, x = torch.rand(100, generator=generator) + 0.1, torch.rand(100, generator=generator) * 5 + 0.1
    c = input_scale(w, x, alpha)
    expected = w.double() ** (1 - alpha) / x.double() ** alpha
    torch.testing.assert_close(c.double(), expected / expected.max(), rtol=1e-6, atol=0)
    assert c.dtype == torch.float32
    assert c.max() == 1


def test_alpha_of_a_half_gives_both_sides_the_same_peaks() -> None:
    w, x = torch.tensor([1.0, 0.1, 4.0]), torch.tensor([1.0, 20.0, 0.5])
    c = input_scale(w, x)
    torch.testing.assert_close(x * c / (w / c), torch.full((3,), float((x * c / (w / c))[0])))


def test_one_factor_for_all_of_x_or_w_changes_nothing() -> None:
    w, x = torch.rand(50) + 0.1, torch.rand(50) + 0.1
    for scaled in (input_scale(w * 1e-30, x), input_scale(w, x * 1e30), input_scale(w * 1e30, x * 1e-30)):
        torch.testing.assert_close(scaled, input_scale(w, x), rtol=1e-5, atol=0)


def test_dead_channels() -> None:
    w, x = torch.ones(9), torch.ones(9)
    w[1], x[2], w[3], x[3] = 0, 0, 0, 0
    c = input_scale(w, x)
    assert c.tolist() == [1, pytest.approx(1 / LARGEST_RATIO), *[1] * 7]
    x[4] = 1e-30  # alive by a hair: it must not take the others' resolution
    c = input_scale(w, x)
    assert c[4] == 1
    torch.testing.assert_close(c[5:], torch.full((4,), 1 / LARGEST_RATIO))
    assert torch.equal(input_scale(torch.zeros(3), torch.ones(3)), torch.ones(3))
    assert torch.equal(input_scale(torch.ones(3), torch.zeros(3)), torch.ones(3))


@pytest.mark.parametrize("alpha", [1e-6, 0.5, 1.0])
def test_always_finite_and_within_bounds(alpha: float) -> None:
    odd = [0.0, 1e-45, 1e-38, 1.0, 1e30, MAX, float("inf"), float("nan")]
    w, x = (side.reshape(-1) for side in torch.meshgrid(torch.tensor(odd), torch.tensor(odd), indexing="ij"))
    for peaks in ((w, x), (w[:1], x[:1]), (w.bfloat16(), x.bfloat16())):
        c = input_scale(*peaks, alpha)
        assert torch.isfinite(c).all()
        assert c.min() >= torch.tensor(SMALLEST_SCALE)
        assert c.max() == 1
    assert torch.equal(input_scale(torch.tensor([1.0, float("nan")]), torch.ones(2)), torch.ones(2))


@pytest.mark.parametrize(
    ("w", "x", "alpha", "message"),
    [
        (torch.ones(3), torch.ones(4), 0.5, r"\[3\] and \[4\]"),
        (torch.ones(3, 3), torch.ones(3, 3), 0.5, "two vectors"),
        (torch.ones(3), torch.ones(3), 0.0, r"\(0, 1\], got 0\.0"),
        (torch.ones(3), torch.ones(3), 1.5, "got 1.5"),
        (torch.ones(3), torch.ones(3), float("nan"), "got nan"),
    ],
)
def test_what_is_refused(w: Tensor, x: Tensor, alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        input_scale(w, x, alpha)


def test_channel_range_is_the_minimum_and_maximum_of_everything_seen() -> None:
    batches = [torch.randn(3, 4, 5), torch.randn(5) + 3, torch.randn(2, 7, 5)[:, ::2], torch.empty(0, 5)]
    seen = ChannelRange(5)
    for batch in batches:
        seen.add(batch)
    rows = torch.cat([batch.reshape(-1, 5) for batch in batches])
    assert torch.equal(seen.low, rows.amin(0).clamp_max(0))
    assert torch.equal(seen.high, rows.amax(0).clamp_min(0))
    assert torch.equal(seen.peak(), rows.abs().amax(0))
    assert seen.is_finite
    narrow = ChannelRange(5)
    narrow.add(rows.bfloat16())
    assert narrow.low.dtype == torch.float32
    assert torch.equal(narrow.peak(), rows.bfloat16().float().abs().amax(0))


def test_the_range_of_a_product_is_that_of_observing_the_product() -> None:
    x, c = torch.randn(40, 6) * torch.tensor([1.0, 9, 0.1, 30, 2, 5]), torch.rand(6) + 0.01
    seen, product = ChannelRange(6), ChannelRange(6)
    seen.add(x)
    product.add(x * c)
    assert seen.x_range(c) == product.x_range()
    assert seen.x_range(c) != seen.x_range()
    assert ChannelRange(3).x_range() == (1.0, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_channel_range_notices_what_is_not_finite(bad: float) -> None:
    seen = ChannelRange(3)
    seen.add(torch.tensor([[0.0, bad, 1.0]]))
    seen.add(torch.ones(4, 3))
    assert not seen.is_finite


@pytest.mark.parametrize("static", [(0.0, 0), (0.02, 131)])
def test_fake_quantize_is_what_the_integers_stand_for(static: tuple[float, int]) -> None:
    x = torch.cat([torch.randn(20, 30) * torch.logspace(-3, 3, 20)[:, None], torch.zeros(1, 30)])
    got = fake_quantize(x, *static)
    q, scale, zero = (torch.from_numpy(part) for part in reference.quantize_rows(x.numpy(), *static)[:3])
    expected = (q.int() - zero[:, None]) * scale[:, None]
    assert ((got - expected).abs() > 1e-6 * scale[:, None]).float().mean() < 1e-3  # ties may fall the other way
    assert ((got - expected).abs() <= 1.001 * scale[:, None]).all()


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("static", [(0.0, 0), (0.02, 131)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_error_is_that_of_the_product(smoothed: bool, static: tuple[float, int], dtype: torch.dtype) -> None:
    weight, x = torch.randn(1 << 9, 1 << 12).to(dtype), torch.randn(9, 1 << 12).to(dtype)
    c = torch.rand(1 << 12) + 0.1 if smoothed else None
    q, scale = quantize_s8(weight.float(), c)
    y = fake_quantize(x.float() if c is None else x.float() * c, *static) @ dequantize_s8(q, scale).t()
    exact = x.float() @ weight.float().t()
    assert linear_error(weight, x, c, *static) == pytest.approx(float((y - exact).norm() / exact.norm()), rel=1e-3)


def test_linear_error_of_nothing() -> None:
    assert math.isnan(linear_error(torch.ones(3, 4), torch.zeros(2, 4)))
    assert math.isnan(linear_error(torch.ones(3, 4), torch.full((2, 4), float("nan"))))
    with pytest.raises(ValueError, match="NaN or infinity"):
        linear_error(torch.full((3, 4), float("nan")), torch.zeros(2, 4))

"""The torch ops linear_s8 and spmm_s8 on every device that has them: one suite, the same numbers bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from packed_weight import DTYPES, NONE, PackedWeight, check
from torch import Tensor

from tersor.ops import ACTIVATIONS

N, K = 45, 70


class Target(NamedTuple):
    """An op and where it runs."""

    op: str
    device: str


@pytest.fixture(params=["linear_s8 cpu", "spmm_s8 cpu", "linear_s8 cuda"])
def target(request: pytest.FixtureRequest) -> Target:
    target = Target(*request.param.split())
    if target.device == "cuda":
        request.getfixturevalue("gpu")
    return target


@pytest.fixture
def weight(rng: np.random.Generator, target: Target) -> PackedWeight:
    torch.manual_seed(3)
    return PackedWeight(rng, N, K, *target)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(K,), (1, K), (3, K), (2, 3, K), (1, 2, 1, 29, K), (1,) * 11 + (2, K)])
def test_every_rank_and_dtype(weight: PackedWeight, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).to(dtype)
    check(weight(x), weight.expected(x))


EXTENTS = [1, 15, 16, 17, 63, 64, 65, 129]


@pytest.mark.parametrize("m", EXTENTS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 3), (8, 16), (16, 31), (17, 64), (64, 65), (129, 127), (130, 520)])
def test_ragged_extents(rng: np.random.Generator, target: Target, m: int, n: int, k: int) -> None:
    weight = PackedWeight(rng, n, k, *target)
    x, bias, residual = torch.randn(m, k), torch.randn(n), torch.randn(m, n)
    check(weight(x, bias, residual), weight.expected(x, bias, residual))


@pytest.mark.parametrize("m", [1, 4, 16, 40, 200])
def test_a_layer_of_real_size(rng: np.random.Generator, target: Target, m: int) -> None:
    weight = PackedWeight(rng, 768, 3072, *target)
    x, bias = torch.randn(m, 3072).bfloat16(), torch.randn(768)
    check(weight(x, bias, NONE, "gelu"), weight.expected(x, bias, None, "gelu"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("m", [3, 90])
def test_bias_residual_activation_and_static_scale(
    weight: PackedWeight, dtype: torch.dtype, activation: str, m: int
) -> None:
    x, bias, residual = torch.randn(m, K).to(dtype), torch.randn(N), torch.randn(m, N).to(dtype)
    check(weight(x, bias, residual, activation), weight.expected(x, bias, residual, activation))
    static = (0.02, 131)
    check(weight(x, bias, NONE, activation, *static), weight.expected(x, bias, None, activation, *static))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_in_float32_or_the_dtype_of_x_with_any_stride(weight: PackedWeight, dtype: torch.dtype) -> None:
    x = torch.randn(2, K).to(dtype)
    for bias in (torch.randn(N), torch.randn(N).to(dtype), torch.randn(2 * N).to(dtype)[::2], torch.randn(1).expand(N)):
        check(weight(x, bias), weight.expected(x, bias))


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "columns of a wider matrix": lambda: torch.randn(4, 3, 2 * K)[..., 5 : 5 + K],
    "every other row": lambda: torch.randn(12, K)[::2],
    "every other column": lambda: torch.randn(4, 2 * K)[:, ::2],
    "transposed": lambda: torch.randn(K, 6).t(),
    "leading dimensions swapped": lambda: torch.randn(3, 5, K).transpose(0, 1),
    "expanded rows": lambda: torch.randn(1, K).expand(7, K),
    "expanded leading dimension": lambda: torch.randn(1, 3, K).expand(4, 3, K),
    "expanded columns": lambda: torch.randn(4, 1).expand(4, K),
    "size 1 with an odd stride": lambda: torch.randn(3, 1, 2 * K)[:, :, :K],
    "offset into the storage": lambda: torch.randn(1 + 2 * K)[1:].view(2, K),
}


def on(device: str, x: Tensor) -> Tensor:
    """x on the device in the same layout."""
    base = x if x._base is None else x._base
    return base.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_x_and_residual(
    weight: PackedWeight, rng: np.random.Generator, target: Target, dtype: torch.dtype, layout: str
) -> None:
    made = LAYOUTS[layout]()
    base = (made if made._base is None else made._base).to(dtype)
    x = base.as_strided(made.shape, made.stride(), made.storage_offset())
    there = on(target.device, x)
    assert there.stride() == x.stride()
    before = there.clone()
    check(weight(there), weight.expected(x))
    square = PackedWeight(rng, K, K, *target)  # the residual of a [K, K] weight has the shape of x
    other = torch.randn(x.shape).to(dtype)
    check(square(other, residual=there), square.expected(other, None, x))
    assert torch.equal(there, before)


@pytest.mark.parametrize("shape", [(0, K), (3, 0, K), (0, 0, K)])
def test_no_rows(weight: PackedWeight, shape: tuple[int, ...]) -> None:
    residual = torch.empty(*shape[:-1], N)
    assert weight(torch.empty(shape), torch.randn(N), residual).shape == (*shape[:-1], N)


def test_the_residual_may_be_x_itself(rng: np.random.Generator, target: Target) -> None:
    weight = PackedWeight(rng, K, K, *target)
    x = torch.randn(5, K)
    there = x.to(target.device)
    check(weight(there, residual=there), weight.expected(x, None, x))


@pytest.mark.parametrize("x_scale", [0.0, 0.02])
def test_a_row_that_is_not_finite_is_nan_and_the_others_are_untouched(weight: PackedWeight, x_scale: float) -> None:
    x = torch.randn(6, K)
    x[1, 3], x[4, 0] = float("nan"), float("-inf")
    expected = weight.expected(x, x_scale=x_scale, x_zero_point=100)
    assert expected.isnan().all(1).tolist() == [False, True, False, False, True, False]
    got = weight(x, x_scale=x_scale, x_zero_point=100).cpu()
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got[[0, 2, 3, 5]], expected[[0, 2, 3, 5]])


@pytest.mark.parametrize("m", [2, 70])
def test_extreme_weights_inputs_and_scales(rng: np.random.Generator, target: Target, m: int) -> None:
    weight = PackedWeight(rng, 33, 4099, *target, w=np.full((33, 4099), -127, np.int8))
    x = torch.full((m, 4099), 3.0)
    x[0] = 0.0
    x[1] = torch.randn(4099) * 1e-38
    check(weight(x), weight.expected(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("x_scale", [0.0, 0.02])
def test_smoothing(rng: np.random.Generator, target: Target, dtype: torch.dtype, x_scale: float) -> None:
    input_scale = rng.uniform(1e-2, 1, K).astype(np.float32)
    weight = PackedWeight(rng, N, K, *target, input_scale=input_scale)
    x, bias = torch.randn(19, K).to(dtype), torch.randn(N)
    check(
        weight(x, bias, x_scale=x_scale, x_zero_point=120), weight.expected(x, bias, x_scale=x_scale, x_zero_point=120)
    )

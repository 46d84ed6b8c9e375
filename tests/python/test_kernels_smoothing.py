"""Smoothed weights through tersor.kernels and the torch op: columns of x are multiplied before they are quantised."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy_reference as reference
import pytest
import torch
from packed_weight import DTYPES, NONE

from tersor import _C, kernels
from tersor.errors import TersorError
from tersor.ops import LINEAR_S8

Rng = np.random.Generator
F32 = np.float32


def smoothed(rng: Rng, n: int, k: int) -> tuple[Any, Any, Any]:
    """w, scale and input_scale of a random weight."""
    return *reference.weight(rng, n, k), rng.uniform(1e-3, 1, size=k).astype(F32)


@pytest.mark.parametrize("static", [(0.0, 0), (0.03, 119)])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 33, 65), (5, 64, 31), (13, 96, 127), (64, 257, 33)])
def test_linear_is_the_definition(isa: str, rng: Rng, m: int, n: int, k: int, static: tuple[float, int]) -> None:
    w, scale, c = smoothed(rng, n, k)
    x = (rng.standard_normal((m, k)) * 3).astype(F32)
    bias = rng.standard_normal(n).astype(F32)
    packed = kernels.pack_s8(w, scale, c)
    got = kernels.linear_s8(x, packed, bias, None, "none", *static)
    np.testing.assert_array_equal(got, reference.linear(x * c, w, scale, bias, None, *static))
    np.testing.assert_array_equal(kernels.input_scale_s8(packed), c)
    np.testing.assert_array_equal(kernels.unpack_s8(packed)[0], w)
    assert packed.size == kernels.packed_bytes_s8(n, k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_torch_op_multiplies_in_float32(isa: str, rng: Rng, dtype: torch.dtype) -> None:
    w, scale, c = smoothed(rng, 45, 70)
    packed = torch.from_numpy(kernels.pack_s8(w, scale, c))
    x = torch.randn(2, 9, 140).to(dtype)[..., ::2]
    expected = reference.linear(x.float().numpy().reshape(-1, 70) * c, w, scale)
    got = LINEAR_S8(x, packed, NONE, NONE, 45, 0, 0.0, 0)
    assert torch.equal(got, torch.from_numpy(expected).reshape(2, 9, 45).to(dtype))


def test_a_weight_without_smoothing_has_no_input_scale(rng: Rng) -> None:
    w, scale, c = smoothed(rng, 20, 30)
    plain = kernels.pack_s8(w, scale)
    assert kernels.input_scale_s8(plain) is None
    assert not np.array_equal(plain, kernels.pack_s8(w, scale, c))
    np.testing.assert_array_equal(kernels.pack_s8(w, scale, np.repeat(c, 2)[::2]), kernels.pack_s8(w, scale, c))
    with pytest.raises(TersorError, match="header says"):
        kernels.input_scale_s8(plain[:-1])


def test_integers_are_not_touched_by_it(rng: Rng) -> None:
    w, scale, c = smoothed(rng, 20, 30)
    a = rng.integers(0, 256, size=(4, 30), dtype=np.uint8)
    np.testing.assert_array_equal(kernels.gemm_s8(a, kernels.pack_s8(w, scale, c)), reference.gemm(a, w))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_values_are_checked(rng: Rng, bad: float) -> None:
    w, scale, c = smoothed(rng, 4, 6)
    c[4] = bad
    with pytest.raises(TersorError, match=r"input scale of column 4 is .*finite and greater than 0"):
        kernels.pack_s8(w, scale, c)


def test_arguments_are_checked(rng: Rng) -> None:
    w, scale, c = smoothed(rng, 4, 6)
    with pytest.raises(TersorError, match=r"input_scale: expected shape \[6\], got \[5\]"):
        kernels.pack_s8(w, scale, c[:5])
    with pytest.raises(TersorError, match="input_scale: expected a numpy array of float32, got float64"):
        kernels.pack_s8(w, scale, c.astype(np.float64))
    block = kernels.pack_s8(w, scale)
    with pytest.raises(TersorError, match="input_scale is a null address"):
        _C.set_input_scale_s8(0, block.ctypes.data, block.size)
    with pytest.raises(TersorError, match="packed is a null address"):
        _C.set_input_scale_s8(c.ctypes.data, 0, block.size)
    _C.set_input_scale_s8(c.ctypes.data, block.ctypes.data, block.size)
    np.testing.assert_array_equal(block, kernels.pack_s8(w, scale, c))

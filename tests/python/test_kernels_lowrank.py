"""tersor.kernels.lowrank_f32 and lowrank_s8 against their definitions on NumPy arrays."""

from __future__ import annotations

import numpy as np
import pytest

from tersor import TersorError, kernels


def quantised(rng: np.random.Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(-127, 128, (n, k), dtype=np.int8), (rng.random(n, dtype=np.float32) + 0.1) / 64


def test_integers_in_floats_are_exact() -> None:
    rng = np.random.default_rng(0)
    x, down, up = (rng.integers(-8, 9, shape).astype(np.float32) for shape in ((5, 37), (11, 37), (23, 11)))
    bias, residual = (rng.integers(-9, 9, shape).astype(np.float32) for shape in ((23,), (5, 23)))
    packed = kernels.pack_lowrank_f32(down, up)
    np.testing.assert_array_equal(kernels.lowrank_f32(x, packed, bias, residual), x @ down.T @ up.T + bias + residual)
    for got, expected in zip(kernels.unpack_lowrank_f32(packed), (down, up), strict=True):
        np.testing.assert_array_equal(got, expected)
    info = kernels.inspect_lowrank_f32(packed)
    assert (info["n"], info["k"], info["rank"], info["runnable"]) == (23, 37, 11, True)
    assert info["kernel"].startswith("gemm_f32_")


@pytest.mark.parametrize("m", [1, 7, 40])
@pytest.mark.parametrize("smooth", [False, True])
def test_int8_is_two_calls_of_linear_s8(m: int, smooth: bool) -> None:
    rng = np.random.default_rng(m)
    n, k, rank = 50, 66, 33
    x, bias = rng.standard_normal((m, k), np.float32), rng.standard_normal(n, np.float32)
    residual = rng.standard_normal((m, n), np.float32)
    input_scale = rng.random(k, np.float32) + 0.1 if smooth else None
    down, up, dense = quantised(rng, rank, k), quantised(rng, n, rank), quantised(rng, n, k)
    for isa in kernels.available():
        with kernels.use(isa):
            packed = kernels.pack_lowrank_s8(*down, *up, input_scale)
            beside = kernels.pack_lowrank_s8(*down, *up, input_scale, *dense)
            h = kernels.linear_s8(x, kernels.pack_s8(*down, input_scale))
            y = kernels.linear_s8(h, kernels.pack_s8(*up), bias, residual)
            whole = kernels.linear_s8(x, kernels.pack_s8(*dense, input_scale), None, y, "gelu")
            np.testing.assert_array_equal(kernels.lowrank_s8(x, packed, bias, residual), y)
            np.testing.assert_array_equal(kernels.lowrank_s8(x, beside, bias, residual, "gelu"), whole)
    for got, expected in zip(kernels.unpack_lowrank_s8(beside), (*down, *up, *dense), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert kernels.unpack_lowrank_s8(packed)[4:] == (None, None)
    kept = kernels.input_scale_lowrank_s8(packed)
    assert (kept is None) if input_scale is None else np.array_equal(kept, input_scale)
    assert kernels.inspect_lowrank_s8(beside)["dense"]


def test_wrong_arguments() -> None:
    down, up = np.ones((3, 8), np.float32), np.ones((6, 3), np.float32)
    packed = kernels.pack_lowrank_f32(down, up)
    with pytest.raises(TersorError, match=r"up: expected shape \[6, 3\], got \[6, 2\]"):
        kernels.pack_lowrank_f32(down, up[:, :2])
    with pytest.raises(TersorError, match="rank=7"):
        kernels.pack_lowrank_f32(np.ones((7, 8), np.float32), np.ones((6, 7), np.float32))
    with pytest.raises(TersorError, match="x: expected shape"):
        kernels.lowrank_f32(np.ones((2, 7), np.float32), packed)
    with pytest.raises(TersorError, match="packed low-rank int8 weight"):
        kernels.lowrank_s8(np.ones((2, 8), np.float32), packed)
    integers = np.ones((3, 8), np.int8), np.ones(3, np.float32)
    with pytest.raises(TersorError, match=r"dense: expected shape \[6, 8\]"):
        kernels.pack_lowrank_s8(*integers, np.ones((6, 3), np.int8), np.ones(6, np.float32), None, *integers)

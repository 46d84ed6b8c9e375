"""Sparse weights on NumPy arrays: the same bits as the dense op, the way back, wrong arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy_reference as reference
import pytest

from tersor import kernels
from tersor.errors import TersorError

SHAPES = [(1, 1, 1), (2, 5, 3), (15, 17, 64), (16, 64, 129), (65, 70, 385), (130, 33, 800)]


def sparse(rng: np.random.Generator, n: int, k: int, density: float, block: int) -> tuple[Any, Any]:
    w, scale = reference.weight(rng, n, k)
    kept = rng.random((n, -(-k // block))) < density
    return w * np.repeat(kept, block, axis=1)[:, :k].astype(np.int8), scale


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_equals_the_dense_op(
    isa: str, rng: np.random.Generator, m: int, n: int, k: int, density: float, block: int
) -> None:
    w, scale = sparse(rng, n, k, density, block)
    x, bias = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    residual = rng.standard_normal((m, n)).astype(np.float32)
    got = kernels.spmm_s8(x, kernels.pack_sparse_s8(w, scale), bias, residual)
    np.testing.assert_array_equal(got, reference.linear(x, w, scale, bias, residual))
    got = kernels.spmm_s8(x, kernels.pack_sparse_s8(w, scale), None, None, "gelu", 0.02, 100)
    np.testing.assert_array_equal(got, kernels.linear_s8(x, kernels.pack_s8(w, scale), None, None, "gelu", 0.02, 100))


def test_input_scale_smooths(isa: str, rng: np.random.Generator) -> None:
    w, scale = sparse(rng, 20, 37, 0.3, 4)
    x, smooth = rng.standard_normal((9, 37)).astype(np.float32), rng.uniform(0.1, 2, 37).astype(np.float32)
    packed = kernels.pack_sparse_s8(w, scale, smooth)
    np.testing.assert_array_equal(kernels.input_scale_sparse_s8(packed), smooth)
    assert kernels.input_scale_sparse_s8(kernels.pack_sparse_s8(w, scale)) is None
    got = kernels.spmm_s8(x, packed)
    np.testing.assert_array_equal(got, reference.linear(x * smooth, w, scale))


def test_the_way_back_is_exact(isa: str, rng: np.random.Generator) -> None:
    for n, k in [(1, 1), (7, 6), (65, 389), (200, 1000)]:
        w, scale = sparse(rng, n, k, 0.2, 4)
        packed = kernels.pack_sparse_s8(w, scale)
        np.testing.assert_array_equal(kernels.unpack_sparse_s8(packed)[0], w)
        np.testing.assert_array_equal(kernels.unpack_sparse_s8(packed)[1], scale)
        padded = np.pad(w, ((0, 0), (0, -k % 4))).reshape(n, -1, 4)
        info = kernels.inspect_sparse_s8(packed)
        assert (info["n"], info["k"], info["runnable"]) == (n, k, True)
        assert info["quads"] == padded.any(axis=2).sum()
        assert info["kernel"].startswith("spmm_s8_")


def test_wrong_arguments_are_refused(rng: np.random.Generator) -> None:
    w, scale = sparse(rng, 6, 8, 0.5, 4)
    packed = kernels.pack_sparse_s8(w, scale)
    x = np.zeros((2, 8), np.float32)
    with pytest.raises(TersorError, match="expected shape"):
        kernels.spmm_s8(x[:, :7], packed)
    with pytest.raises(TersorError, match="'tanh' is unknown"):
        kernels.spmm_s8(x, packed, activation="tanh")
    with pytest.raises(TersorError, match="packed sparse int8 weight"):
        kernels.spmm_s8(x, kernels.pack_s8(w, scale))
    with pytest.raises(TersorError, match="packed int8 weight"):
        kernels.linear_s8(x, packed)
    with pytest.raises(TersorError, match="packed sparse int8 weight"):
        kernels.unpack_sparse_s8(packed[:-1])
    with pytest.raises(TersorError, match="-128"):
        kernels.pack_sparse_s8(np.full((6, 8), -128, np.int8), scale)
    with pytest.raises(TersorError, match="65537"):
        kernels.pack_sparse_s8(np.zeros((1, 65537), np.int8), scale[:1])

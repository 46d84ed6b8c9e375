"""Sparse float weights on NumPy arrays: the chain of multiply-adds, SciPy's matrices, the way back, wrong arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tersor import kernels
from tersor.errors import TersorError

SHAPES = [(1, 1, 1), (2, 5, 3), (17, 64, 129), (33, 70, 385), (65, 33, 800)]


def sparse(rng: np.random.Generator, n: int, k: int, density: float) -> Any:
    w = rng.standard_normal((n, k)).astype(np.float32)
    return np.where(rng.random((n, k)) < density, w, np.float32(0))


def in_order(x: Any, w: Any, bias: Any) -> Any:
    """The sums in float64, rounded to float32 after each product: fused, but for rare double rounding."""
    y = np.tile(bias, (len(x), 1))
    for p in range(w.shape[1]):
        product = x[:, p, None].astype(np.float64) * w[:, p].astype(np.float64)
        y = np.where(w[:, p] != 0, (y.astype(np.float64) + product).astype(np.float32), y)
    return y


@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_is_one_chain_per_output(isa: str, rng: np.random.Generator, m: int, n: int, k: int, density: float) -> None:
    # Values of few bits: products and sums are exact, whatever the order.
    w = np.round(sparse(rng, n, k, density) * 8) / np.float32(8)
    x = np.round(rng.standard_normal((m, k)) * 8).astype(np.float32) / np.float32(8)
    bias, residual = rng.integers(-9, 9, n).astype(np.float32), rng.integers(-9, 9, (m, n)).astype(np.float32)
    packed = kernels.pack_sparse_f32(w)
    np.testing.assert_array_equal(kernels.spmm_f32(x, packed, bias, residual), x @ w.T + bias + residual)
    np.testing.assert_array_equal(kernels.spmm_f32(x, packed, None, None, "relu"), np.maximum(x @ w.T, 0))


def test_the_order_of_the_sums(isa: str, rng: np.random.Generator) -> None:
    w, x = sparse(rng, 40, 300, 0.2), rng.standard_normal((20, 300)).astype(np.float32)
    bias = rng.standard_normal(40).astype(np.float32)
    for rows in (x, x[:1]):
        got, expected = kernels.spmm_f32(rows, kernels.pack_sparse_f32(w), bias), in_order(rows, w, bias)
        assert (got == expected).mean() > 0.99
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_scipy_matrices(rng: np.random.Generator) -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    w, x = sparse(rng, 30, 50, 0.1), rng.standard_normal((4, 50)).astype(np.float32)
    expected = kernels.pack_sparse_f32(w)
    for matrix in (scipy_sparse.csr_matrix(w), scipy_sparse.csr_array(w), scipy_sparse.coo_matrix(w)):
        np.testing.assert_array_equal(kernels.pack_sparse_f32(matrix), expected)
    got = kernels.spmm_f32(x, kernels.pack_sparse_f32(scipy_sparse.csr_matrix(w)))
    np.testing.assert_allclose(got, (scipy_sparse.csr_matrix(w) @ x.T).T, rtol=1e-5, atol=1e-5)
    with pytest.raises(TersorError, match="float64"):
        kernels.pack_sparse_f32(scipy_sparse.csr_matrix(w.astype(np.float64)))


def test_the_way_back_is_exact(isa: str, rng: np.random.Generator) -> None:
    for n, k in [(1, 1), (7, 6), (65, 389), (200, 1000)]:
        w = sparse(rng, n, k, 0.2)
        packed = kernels.pack_sparse_f32(w)
        np.testing.assert_array_equal(kernels.unpack_sparse_f32(packed), w)
        info = kernels.inspect_sparse_f32(packed)
        assert (info["n"], info["k"], info["nnz"], info["runnable"]) == (n, k, np.count_nonzero(w), True)
        assert info["kernel"].startswith("spmm_f32_")


def test_wrong_arguments_are_refused(rng: np.random.Generator) -> None:
    w, x = sparse(rng, 6, 8, 0.5), np.zeros((2, 8), np.float32)
    packed = kernels.pack_sparse_f32(w)
    with pytest.raises(TersorError, match="expected shape"):
        kernels.spmm_f32(x[:, :7], packed)
    with pytest.raises(TersorError, match="'tanh' is unknown"):
        kernels.spmm_f32(x, packed, activation="tanh")
    with pytest.raises(TersorError, match="packed sparse float weight"):
        kernels.spmm_f32(x, kernels.pack_s8(np.ones((6, 8), np.int8), np.ones(6, np.float32)))
    with pytest.raises(TersorError, match="packed sparse float weight"):
        kernels.unpack_sparse_f32(packed[:-1])
    with pytest.raises(TersorError, match="float64"):
        kernels.pack_sparse_f32(w.astype(np.float64))
    with pytest.raises(TersorError, match="2 dimensions"):
        kernels.pack_sparse_f32(w[0])
    with pytest.raises(TersorError, match="list"):
        kernels.pack_sparse_f32([[1.0]])  # type: ignore[arg-type]

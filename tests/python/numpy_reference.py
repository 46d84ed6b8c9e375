"""The definitions of docs/kernels.md in NumPy float32: every kernel equals them bit for bit."""

from __future__ import annotations

from math import erfc

import numpy as np
from numpy.typing import NDArray

F32 = np.float32
DEPTH = 65536  # deeper products are summed in chunks of this depth


def quantize_rows(
    x: NDArray[np.float32], x_scale: float = 0.0, x_zero_point: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int32]]:
    """q [m, k], scale [m], zero_point [m]; a row that is not finite has scale NaN and q 0."""
    finite = np.isfinite(x).all(axis=1)
    clean = np.where(finite[:, None], x, F32(0))
    low = np.minimum(clean.min(axis=1, initial=0), F32(0))
    high = np.maximum(clean.max(axis=1, initial=0), F32(0))
    scale = np.maximum(high / F32(255) - low / F32(255), np.finfo(F32).tiny)
    zero_point = np.clip(np.rint(-low * (F32(1) / scale)), 0, 255).astype(np.int32)
    if x_scale > 0:
        scale, zero_point = np.full_like(scale, x_scale), np.full_like(zero_point, x_zero_point)
    inv_scale = F32(1) / scale
    zero = zero_point.astype(F32)[:, None]
    steps = np.rint(np.clip(clean * inv_scale[:, None], -zero, F32(255) - zero))
    q = (steps.astype(np.int32) + zero_point[:, None]).astype(np.uint8)
    q[~finite] = 0
    return q, np.where(finite, scale, F32(np.nan)), np.where(finite, zero_point, 0).astype(np.int32)


def gemm(a: NDArray[np.uint8], w: NDArray[np.int8]) -> NDArray[np.int32]:
    """Exact: every product sum fits the 53 bits of a double, and then int32."""
    return (a.astype(np.float64) @ w.T.astype(np.float64)).astype(np.int32)


def linear(
    x: NDArray[np.float32],
    w: NDArray[np.int8],
    scale: NDArray[np.float32],
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    x_scale: float = 0.0,
    x_zero_point: int = 0,
) -> NDArray[np.float32]:
    """x W^T + bias + residual before the activation, each float step rounded once in this order."""
    q, row_scale, zero_point = quantize_rows(x, x_scale, x_zero_point)
    y: NDArray[np.float32] | None = residual
    for begin in range(0, x.shape[1], DEPTH):
        part = slice(begin, begin + DEPTH)
        column_sum = w[:, part].astype(np.int32).sum(axis=1, dtype=np.int32)
        exact = gemm(q[:, part], w[:, part]) - zero_point[:, None] * column_sum
        term = exact.astype(F32) * (row_scale[:, None] * scale)
        term = term + (F32(0) if bias is None or begin > 0 else bias)
        y = term if y is None else term + y
    assert y is not None
    return y


def activation(name: str, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """The mathematical function in float64, in forms that do not cancel."""
    v = x.astype(np.float64)
    if name == "relu":
        return np.maximum(v, 0)
    if name == "gelu":
        return v * 0.5 * np.vectorize(erfc)(-v / np.sqrt(2))
    if name == "gelu_tanh":
        return v / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))
    if name == "silu":
        return v / (1 + np.exp(-v))
    return v


def weight(rng: np.random.Generator, n: int, k: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """w [n, k] over all of [-127, 127] and positive scales [n]."""
    w = rng.integers(-127, 128, size=(n, k), dtype=np.int8)
    return w, rng.uniform(1e-3, 2e-2, size=n).astype(F32)

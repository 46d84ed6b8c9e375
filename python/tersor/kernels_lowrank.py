"""The low-rank kernels on NumPy arrays; tersor.kernels has them by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tersor import _C
else:
    from tersor._native import core

    _C = core()


def pack_lowrank_f32(down: NDArray[np.float32], up: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Packs two float factors for the active kernel.

    Args:
        down: float32 [rank, k].
        up: float32 [n, rank]; the weight is up @ down. rank is at most min(n, k).

    Returns:
        uint8, a cache for this CPU.
    """
    return _C.pack_lowrank_f32(down, up)


def unpack_lowrank_f32(packed: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The inverse of `pack_lowrank_f32`: down float32 [rank, k] and up float32 [n, rank], exactly."""
    return _C.unpack_lowrank_f32(packed)


def inspect_lowrank_f32(packed: NDArray[np.uint8]) -> dict[str, Any]:
    """What a packed float low-rank weight is: `n`, `k`, `rank`, `kernel` (its id) and `runnable`."""
    return dict(_C.inspect_lowrank_f32(packed))


def lowrank_f32(
    x: NDArray[np.float32],
    packed: NDArray[np.uint8],
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    activation: str = "none",
) -> NDArray[np.float32]:
    """activation((x downᵀ) upᵀ + bias + residual) in one call.

    Each value of the intermediate and of the result is one chain of fused multiply-adds in the order of k, from 0 and
    from the bias on: the same bits on every instruction set and with any number of threads.

    Args:
        x: float32 [m, k].
        packed: what `pack_lowrank_f32` returned.
        bias: float32 [n], or None.
        residual: float32 [m, n], added before the activation, or None.
        activation: "none", "relu", "gelu", "gelu_tanh" or "silu".

    Returns:
        float32 [m, n].
    """
    return _C.lowrank_f32(x, packed, bias, residual, activation)


def pack_lowrank_s8(
    down: NDArray[np.int8],
    down_scale: NDArray[np.float32],
    up: NDArray[np.int8],
    up_scale: NDArray[np.float32],
    input_scale: NDArray[np.float32] | None = None,
    dense: NDArray[np.int8] | None = None,
    dense_scale: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """Packs two int8 factors for the active kernel and, where wanted, a dense int8 weight beside them.

    Args:
        down: int8 [rank, k] in [-127, 127]; row j stands for down_scale[j] * down[j].
        down_scale: float32 [rank], finite and > 0.
        up, up_scale: the same, int8 [n, rank] and float32 [n].
        input_scale: float32 [k], finite and > 0: x is multiplied by it before it is quantised, as in `pack_s8`.
        dense, dense_scale: int8 [n, k] and float32 [n], or None: the op then adds x denseᵀ, from the same quantised x.

    Returns:
        uint8, a cache for this CPU.
    """
    return _C.pack_lowrank_s8(down, down_scale, up, up_scale, input_scale, dense, dense_scale)


def unpack_lowrank_s8(packed: NDArray[np.uint8]) -> tuple[Any, ...]:
    """The inverse of `pack_lowrank_s8`: down, down_scale, up, up_scale, dense and dense_scale; the last two or None."""
    return _C.unpack_lowrank_s8(packed)


def input_scale_lowrank_s8(packed: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """The `input_scale` that a low-rank weight was packed with, float32 [k], or None."""
    return _C.input_scale_lowrank_s8(packed)


def inspect_lowrank_s8(packed: NDArray[np.uint8]) -> dict[str, Any]:
    """What a packed int8 low-rank weight is: `n`, `k`, `rank`, `dense` (bool), `kernel` (its id) and `runnable`."""
    return dict(_C.inspect_lowrank_s8(packed))


def lowrank_s8(
    x: NDArray[np.float32],
    packed: NDArray[np.uint8],
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    activation: str = "none",
    x_scale: float = 0.0,
    x_zero_point: int = 0,
) -> NDArray[np.float32]:
    """activation((x downᵀ) upᵀ + bias + residual) with int8 factors, in one call.

    The same bits as two calls of `linear_s8`: the intermediate is the result of the first, without a bias, quantised
    row by row. With a dense weight, what comes before the activation is the residual of `linear_s8` with that weight.
    The arguments are those of `linear_s8`; x_scale and x_zero_point are about x alone.
    """
    return _C.lowrank_s8(x, packed, bias, residual, activation, x_scale, x_zero_point)

"""Code book weights on NumPy arrays; tersor.kernels has these functions too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tersor import _C
else:
    from tersor._native import core

    _C = core()


def pack_lut4(
    codes: NDArray[np.uint8],
    table: NDArray[np.int8],
    scale: NDArray[np.float32],
    group: int = 0,
    input_scale: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]:
    """Packs a weight that is given by codes: w[j, p] = table[codes[j, p]] * scale[j, p // group].

    Args:
        codes: uint8 [n, k], below the number of entries.
        table: int8 in [-127, 127], 4 to 256 entries (a power of two): [entries], [n, entries] or [n, groups, entries].
        scale: float32 [n, groups], finite and > 0; groups = ceil(k / group).
        group: values of k under one scale, a multiple of 32 up to 65536, or 0: a row has one scale.
        input_scale: float32 [k], finite and > 0, as in `pack_s8`, or None.

    Returns:
        uint8, one block for every instruction set: half a byte a weight where there are at most 16 entries, else one.
    """
    return _C.pack_lut4(codes, table, scale, group, input_scale)


def unpack_lut4(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int8], NDArray[np.float32]]:
    """The inverse of `pack_lut4`: codes, table, scale. Above 16 entries, equal ones come back as the first of them."""
    return _C.unpack_lut4(packed)


def inspect_lut4(packed: NDArray[np.uint8]) -> dict[str, Any]:
    """What a code book weight is: `n`, `k`, `group`, `bits` and the `kernel` (its id) that looks it up."""
    return dict(_C.inspect_lut4(packed))


def gemm_lut4(a: NDArray[np.uint8], packed: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The exact integers c[i, j] = sum over p of a[i, p] * table[codes[j, p]], without any scale.

    Args:
        a: uint8 [m, k], k at most 65536.
        packed: what `pack_lut4` returned for codes [n, k].

    Returns:
        int32 [m, n].
    """
    return _C.gemm_lut4(a, packed)


def linear_lut4(
    x: NDArray[np.float32],
    packed: NDArray[np.uint8],
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    activation: str = "none",
    x_scale: float = 0.0,
    x_zero_point: int = 0,
) -> NDArray[np.float32]:
    """`linear_s8` with a weight from `pack_lut4`; without groups the numbers are those of the int8 weight.

    Args:
        x: float32 [m, k].
        packed: what `pack_lut4` returned for codes [n, k].
        bias: float32 [n], or None.
        residual: float32 [m, n], added before the activation, or None.
        activation: "none", "relu", "gelu", "gelu_tanh" or "silu".
        x_scale: 0 quantises each row by its own range; a positive scale is used for all rows with `x_zero_point`.
        x_zero_point: in [0, 255].

    Returns:
        float32 [m, n].
    """
    return _C.linear_lut4(x, packed, bias, residual, activation, x_scale, x_zero_point)

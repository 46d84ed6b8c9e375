"""The kernels on NumPy arrays, without torch.

Arrays may have any strides; their dtype must be the one named. Every function raises `TersorError` on a wrong dtype,
shape or value, and releases the GIL while it works. The numeric contract is in docs/kernels.md: integers and floats
are the same bit for bit on every instruction set.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tersor._native import cuda as _native_cuda
from tersor.kernels_encoder import encoder_block, encoder_block_times, inspect_encoder_block, pack_encoder_block
from tersor.kernels_lowrank import (
    input_scale_lowrank_s8,
    inspect_lowrank_f32,
    inspect_lowrank_s8,
    lowrank_f32,
    lowrank_s8,
    pack_lowrank_f32,
    pack_lowrank_s8,
    unpack_lowrank_f32,
    unpack_lowrank_s8,
)
from tersor.kernels_lut4 import gemm_lut4, inspect_lut4, linear_lut4, pack_lut4, unpack_lut4

if TYPE_CHECKING:
    from tersor import _C
else:
    from tersor._native import core

    _C = core()

__all__ = [
    "activate",
    "active",
    "available",
    "built",
    "cuda",
    "encoder_block",
    "encoder_block_times",
    "gemm_lut4",
    "gemm_s8",
    "input_scale_lowrank_s8",
    "input_scale_s8",
    "input_scale_sparse_s8",
    "inspect_encoder_block",
    "inspect_lowrank_f32",
    "inspect_lowrank_s8",
    "inspect_lut4",
    "inspect_s8",
    "inspect_sparse_f32",
    "inspect_sparse_s8",
    "int8_ceiling",
    "linear_lut4",
    "linear_s8",
    "lowrank_f32",
    "lowrank_s8",
    "pack_encoder_block",
    "pack_lowrank_f32",
    "pack_lowrank_s8",
    "pack_lut4",
    "pack_s8",
    "pack_sparse_f32",
    "pack_sparse_s8",
    "packed_bytes_s8",
    "quantize_rows",
    "set_threads",
    "spmm_f32",
    "spmm_s8",
    "threads",
    "unpack_lowrank_f32",
    "unpack_lowrank_s8",
    "unpack_lut4",
    "unpack_s8",
    "unpack_sparse_f32",
    "unpack_sparse_s8",
    "usable_cpus",
    "use",
]


class SciPySparse(Protocol):
    """A SciPy sparse matrix or array of any format."""

    def toarray(self) -> NDArray[Any]: ...


def built() -> list[str]:
    """The instruction sets that this build has kernels for, worst first."""
    return _C.isas_built()


def available() -> list[str]:
    """Of those, the ones that this CPU runs under the present cap (`TERSOR_ISA`, `use`), worst first."""
    return _C.isas_available()


def active() -> str:
    """The instruction set in use: the best of `available()`."""
    return _C.isa_active()


@contextmanager
def use(name: str) -> Iterator[None]:
    """Caps dispatch at the instruction set `name`, in the whole process, until the block ends.

    A weight packed before keeps the kernel that it was packed for. Raises TersorError, listing what exists, when
    `name` is unknown or this CPU cannot run it.
    """
    before = _C.isa_active()
    _C.set_isa(name)
    try:
        yield
    finally:
        _C.set_isa(before)


def cuda() -> ModuleType:
    """The CUDA launchers on device addresses: `quantize_rows`, `pack_gemm_s8`, `gemm_s8` and so on, each on a stream.

    Their arguments are those of csrc/include/tersor/cuda.h, by name; addresses and the stream are integers, as
    `Tensor.data_ptr()` and `torch.cuda.current_stream().cuda_stream` or CuPy give them.

    Raises:
        tersor.errors.NativeError: this build has no CUDA kernels, or they find no driver or no GPU.
    """
    return _native_cuda()


def usable_cpus() -> int:
    """How many CPUs this process may use: the smaller of its affinity and its cgroup quota, at least 1."""
    return _C.usable_cpus()


def set_threads(threads: int) -> None:
    """Sets the threads that this module's functions use, at most `usable_cpus()`; 0 means that many."""
    _C.set_threads(threads)


def threads() -> int:
    """The threads that this module's functions use. Torch ops use torch's own threads instead."""
    return _C.threads()


def packed_bytes_s8(n: int, k: int) -> int:
    """Bytes of a packed [n, k] weight for the active kernel."""
    return _C.packed_bytes_s8(n, k)


def int8_ceiling(seconds: float = 0.2) -> float:
    """The int8 ceiling of one core, measured now: the active instruction set's multiply-add on registers alone.

    Args:
        seconds: how long to measure; the best of many short runs counts.

    Returns:
        GOP/s, a multiply-add being two operations.
    """
    iterations, best, end = 20_000, 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        macs = _C.run_int8_peak(iterations)
        best = max(best, 2e-9 * macs / (time.perf_counter() - started))
    return best


def pack_s8(
    w: NDArray[np.int8], scale: NDArray[np.float32], input_scale: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Packs a weight for the active kernel.

    Args:
        w: int8 [n, k] in [-127, 127].
        scale: float32 [n], finite and > 0; row j stands for scale[j] * w[j].
        input_scale: float32 [k], finite and > 0: `linear_s8` multiplies the columns of x by it before it quantises them
            (smoothing); column p of w then stands for scale[j] * w[j, p] * input_scale[p].

    Returns:
        uint8 [packed_bytes_s8(n, k)], a cache for this CPU; store `w` and `scale`, not this.
    """
    return _C.pack_s8(w, scale, input_scale)


def input_scale_s8(packed: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """The `input_scale` that a weight was packed with, float32 [k], or None."""
    return _C.input_scale_s8(packed)


def unpack_s8(packed: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The inverse of `pack_s8`: w int8 [n, k] and scale float32 [n], exactly."""
    return _C.unpack_s8(packed)


def inspect_s8(packed: NDArray[np.uint8]) -> dict[str, Any]:
    """What a packed weight is: `n`, `k`, `kernel` (its id) and `runnable` (whether this CPU runs that kernel)."""
    return dict(_C.inspect_s8(packed))


def gemm_s8(a: NDArray[np.uint8], packed: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The exact integers c[i, j] = sum over p of a[i, p] * w[j, p].

    Args:
        a: uint8 [m, k], k at most 65536.
        packed: what `pack_s8` returned for w [n, k].

    Returns:
        int32 [m, n].
    """
    return _C.gemm_s8(a, packed)


def quantize_rows(
    x: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
    """Asymmetric 8-bit quantisation of each row by its own range, which is stretched to hold 0.

    Args:
        x: float32 [m, k].

    Returns:
        q uint8 [m, k], scale float32 [m], zero_point int32 [m] and row_sum int32 [m] (the sums of q), with
        x[i] close to scale[i] * (q[i] - zero_point[i]). A row with a NaN or an infinity has scale NaN.
    """
    return _C.quantize_rows(x)


def linear_s8(
    x: NDArray[np.float32],
    packed: NDArray[np.uint8],
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    activation: str = "none",
    x_scale: float = 0.0,
    x_zero_point: int = 0,
) -> NDArray[np.float32]:
    """activation(x W^T + bias + residual) with int8 weights and activations quantised to 8 bits on the way in.

    Args:
        x: float32 [m, k].
        packed: what `pack_s8` returned for the weight [n, k].
        bias: float32 [n], or None.
        residual: float32 [m, n], added before the activation, or None.
        activation: "none", "relu", "gelu", "gelu_tanh" or "silu".
        x_scale: 0 quantises each row by its own range; a positive scale is used for all rows with `x_zero_point`.
        x_zero_point: in [0, 255].

    Returns:
        float32 [m, n].
    """
    return _C.linear_s8(x, packed, bias, residual, activation, x_scale, x_zero_point)


def activate(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The activation `name` of `linear_s8` on float32 of any shape, as a new array."""
    return _C.activate(name, x)


def pack_sparse_s8(
    w: NDArray[np.int8], scale: NDArray[np.float32], input_scale: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Packs a weight that is mostly zero for the active sparse kernel, which is fastest on zeros in 1x4 blocks.

    Args:
        w: int8 [n, k] in [-127, 127], k at most 65536; of every 4 values of k those are kept that hold a non-zero.
        scale: float32 [n], finite and > 0; row j stands for scale[j] * w[j].
        input_scale: float32 [k], finite and > 0, as in `pack_s8`, or None.

    Returns:
        uint8, one block of about 6 bytes per 1x4 block kept; a cache for this CPU.
    """
    return _C.pack_sparse_s8(w, scale, input_scale)


def unpack_sparse_s8(packed: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The inverse of `pack_sparse_s8`: w int8 [n, k] and scale float32 [n], exactly."""
    return _C.unpack_sparse_s8(packed)


def input_scale_sparse_s8(packed: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """The `input_scale` that a sparse weight was packed with, float32 [k], or None."""
    return _C.input_scale_sparse_s8(packed)


def inspect_sparse_s8(packed: NDArray[np.uint8]) -> dict[str, Any]:
    """What a sparse packed weight is: `n`, `k`, `quads`, `form`, `kernel` (its id) and `runnable`.

    `quads` counts the 1x4 blocks that hold a non-zero. `form` says how the packer gathered them, decided by the
    pattern: "quads" as they are, "ordered quads" after the inputs changed places, or "columns", where any four
    non-zeros of a row go together.
    """
    return dict(_C.inspect_sparse_s8(packed))


def spmm_s8(
    x: NDArray[np.float32],
    packed: NDArray[np.uint8],
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    activation: str = "none",
    x_scale: float = 0.0,
    x_zero_point: int = 0,
) -> NDArray[np.float32]:
    """`linear_s8` with a weight from `pack_sparse_s8`: the same numbers, bit for bit, as with the dense weight.

    Args:
        x: float32 [m, k].
        packed: what `pack_sparse_s8` returned for the weight [n, k].
        bias: float32 [n], or None.
        residual: float32 [m, n], added before the activation, or None.
        activation: "none", "relu", "gelu", "gelu_tanh" or "silu".
        x_scale: 0 quantises each row by its own range; a positive scale is used for all rows with `x_zero_point`.
        x_zero_point: in [0, 255].

    Returns:
        float32 [m, n].
    """
    return _C.spmm_s8(x, packed, bias, residual, activation, x_scale, x_zero_point)


def pack_sparse_f32(w: NDArray[np.float32] | SciPySparse) -> NDArray[np.uint8]:
    """Packs a float32 weight that is mostly zero, in any pattern, for the active sparse kernel.

    Args:
        w: float32 [n, k], or a SciPy sparse matrix of float32 (CSR or another format), duplicates summed. Zeros are
            left out, -0 too.

    Returns:
        uint8, one block of about 6 bytes per non-zero; a cache for this CPU.
    """
    dense: Any = w.toarray() if not isinstance(w, np.ndarray) and hasattr(w, "toarray") else w
    return _C.pack_sparse_f32(dense)


def unpack_sparse_f32(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The inverse of `pack_sparse_f32`: w float32 [n, k], exactly."""
    return _C.unpack_sparse_f32(packed)


def inspect_sparse_f32(packed: NDArray[np.uint8]) -> dict[str, Any]:
    """What a sparse float weight is: `n`, `k`, `nnz` (its non-zeros), `kernel` (its id) and `runnable`."""
    return dict(_C.inspect_sparse_f32(packed))


def spmm_f32(
    x: NDArray[np.float32],
    packed: NDArray[np.uint8],
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    activation: str = "none",
) -> NDArray[np.float32]:
    """activation(x W^T + bias + residual) with a sparse float32 weight.

    Each output is one chain of fused multiply-adds that begins with the bias and takes the non-zeros of its weight row
    in the order of k, so that the result has the same bits on every instruction set and with any number of threads.

    Args:
        x: float32 [m, k]. An infinity or a NaN reaches the outputs whose weight for it is not zero.
        packed: what `pack_sparse_f32` returned for the weight [n, k].
        bias: float32 [n], or None.
        residual: float32 [m, n], added before the activation, or None.
        activation: "none", "relu", "gelu", "gelu_tanh" or "silu".

    Returns:
        float32 [m, n].
    """
    return _C.spmm_f32(x, packed, bias, residual, activation)

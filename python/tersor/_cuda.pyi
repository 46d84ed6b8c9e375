"""Launchers of the CUDA kernels; csrc/include/tersor/cuda.h has the meaning of every argument.

Addresses are device addresses and, like streams, integers; dtypes are 0 float32, 1 bfloat16, 2 float16. Every launcher
works on the current device, returns at once and raises tersor.errors.TersorError when CUDA refuses the launch.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

DEPTH_PAD: int
SKINNY_ROWS: int
MAX_RANK: int

class Epilogue:
    def __init__(
        self, *, y: int, ldy: int, dtype: int, row_scale: int = 0, row_zero: int = 0, col_scale: int = 0,
        col_sum: int = 0, bias: int = 0, residual: int = 0, ldr: int = 0, activation: int = 0, sums: int = 0,
    ) -> None: ...  # fmt: skip

def device_problem() -> str: ...
def quantize_rows(
    *, m: int, k: int, x: int, ldx: int, dtype: int, q: int, ldq: int, scale: int, zero_point: int, row_sum: int = 0,
    input_scale: int = 0, x_scale: float = 0.0, x_zero_point: int = 0, stream: int,
) -> None: ...  # fmt: skip
def packed_bytes_gemm_s8(n: int, k: int) -> int: ...
def pack_gemm_s8(*, n: int, k: int, w: int, ldw: int, packed: int, col_sum: int, stream: int) -> None: ...
def unpack_gemm_s8(*, n: int, k: int, packed: int, w: int, ldw: int, stream: int) -> None: ...
def gemm_s8_workspace_bytes(m: int, n: int, k: int) -> int: ...
def gemm_s8(
    *, m: int, n: int, k: int, a: int, lda: int, packed: int, epilogue: Epilogue, workspace: int = 0,
    workspace_bytes: int = 0, tile: int = -1, splits: int = 0, stream: int,
) -> None: ...  # fmt: skip
def gemm_s8_skinny_workspace_bytes(m: int, n: int, k: int) -> int: ...
def gemm_s8_skinny(
    *, m: int, n: int, k: int, x: int, ldx: int, packed: int, epilogue: Epilogue, input_scale: int = 0,
    workspace: int = 0, workspace_bytes: int = 0, splits: int = 0, stream: int,
) -> None: ...  # fmt: skip

# Packers: host memory, no device.
def column_sums(w: NDArray[np.int8]) -> NDArray[np.int32]: ...
def pack_sparse24_s8(w: NDArray[np.int8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]: ...
def pack_sparse24_f16(w: NDArray[np.uint16]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]: ...
def pack_bitmap_s8(w: NDArray[np.int8]) -> tuple[NDArray[np.uint32], NDArray[np.int8], NDArray[np.int32]]: ...
def pack_block_s8(w: NDArray[np.int8]) -> tuple[NDArray[np.int8], NDArray[np.int32], NDArray[np.int32]]: ...
def pack_csr_s8(w: NDArray[np.int8]) -> tuple[NDArray[np.int8], NDArray[np.int32], NDArray[np.uint16]]: ...
def pack_csr_f32(w: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.uint16]]: ...

# Launchers of the sparse kernels: m, n, k, a, lda, the arrays of the packer by name, epilogue, stream.
def sparse24_s8(**operands: Any) -> None: ...
def sparse24_f16(**operands: Any) -> None: ...
def bitmap_s8(**operands: Any) -> None: ...
def block_s8(**operands: Any) -> None: ...
def csr_s8(**operands: Any) -> None: ...
def csr_f32(**operands: Any) -> None: ...
def lowrank_f16(
    *, m: int, n: int, k: int, rank: int, x: int, ldx: int, down: int, up: int, epilogue: Epilogue,
    down_scale: int = 0, down_sum: int = 0, stream: int,
) -> None: ...  # fmt: skip
def lowrank_s8(
    *, m: int, n: int, k: int, rank: int, x: int, ldx: int, down: int, up: int, epilogue: Epilogue, down_scale: int,
    down_sum: int, stream: int,
) -> None: ...  # fmt: skip

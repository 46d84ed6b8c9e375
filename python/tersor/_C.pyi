from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

class _Inspection(TypedDict):
    n: int
    k: int
    kernel: str
    runnable: bool

class _SparseInspection(_Inspection):
    quads: int
    form: str

class _SparseFloatInspection(_Inspection):
    nnz: int

class _EncoderPart(TypedDict):
    name: str
    kind: str
    offset: int
    bytes: int
    n: int
    k: int
    kernel: str

class _EncoderInspection(TypedDict):
    hidden: int
    heads: int
    head_dim: int
    ffn: int
    norm_first: bool
    activation: str
    eps1: float
    eps2: float
    scale: float
    runnable: bool
    parts: list[_EncoderPart]
    floats: dict[str, tuple[int, int]]

class _LowRankInspection(_Inspection):
    rank: int
    dense: bool

class _Lut4Inspection(TypedDict):
    n: int
    k: int
    group: int
    bits: int
    kernel: str

class _RecurrentInspection(TypedDict):
    cell: str
    input: int
    hidden: int
    bias: bool
    bytes: int
    kernel: str

def isas_built() -> list[str]: ...
def isas_available() -> list[str]: ...
def isa_active() -> str: ...
def set_isa(name: str) -> None: ...
def usable_cpus() -> int: ...
def set_threads(threads: int) -> None: ...
def threads() -> int: ...
def activations() -> dict[str, int]: ...
def run_int8_peak(iterations: int) -> int: ...
def packed_bytes_s8(n: int, k: int) -> int: ...
def pack_s8(
    w: NDArray[np.int8], scale: NDArray[np.float32], input_scale: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]: ...
def input_scale_s8(packed: NDArray[np.uint8]) -> NDArray[np.float32] | None: ...
def unpack_s8(packed: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.float32]]: ...
def inspect_s8(packed: NDArray[np.uint8]) -> _Inspection: ...
def gemm_s8(a: NDArray[np.uint8], packed: NDArray[np.uint8]) -> NDArray[np.int32]: ...
def quantize_rows(
    x: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]: ...
def linear_s8(
    x: NDArray[np.float32],
    packed: NDArray[np.uint8],
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    activation: str = "none",
    x_scale: float = 0.0,
    x_zero_point: int = 0,
) -> NDArray[np.float32]: ...
def activate(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
def pack_begin_s8(n: int, k: int, packed: int, bytes: int) -> None: ...
def set_input_scale_s8(input_scale: int, packed: int, bytes: int) -> None: ...
def pack_rows_s8(row_begin: int, rows: int, w: int, scale: int, packed: int, bytes: int) -> None: ...
def unpack_rows_s8(row_begin: int, rows: int, packed: int, bytes: int, w: int, scale: int) -> None: ...
def pack_sparse_s8(
    w: NDArray[np.int8], scale: NDArray[np.float32], input_scale: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]: ...
def unpack_sparse_s8(packed: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.float32]]: ...
def input_scale_sparse_s8(packed: NDArray[np.uint8]) -> NDArray[np.float32] | None: ...
def inspect_sparse_s8(packed: NDArray[np.uint8]) -> _SparseInspection: ...
def spmm_s8(
    x: NDArray[np.float32],
    packed: NDArray[np.uint8],
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    activation: str = "none",
    x_scale: float = 0.0,
    x_zero_point: int = 0,
) -> NDArray[np.float32]: ...
def eager_setup(tensor: type, parameter: type, forward_ad: ModuleType, probes: tuple[Any, ...]) -> bool: ...
def eager_linear_s8(layer: Any, x: Any) -> Any | None: ...
def eager_linear_lut4(layer: Any, x: Any) -> Any | None: ...
def eager_spmm_s8(layer: Any, x: Any) -> Any | None: ...
def eager_spmm_f32(layer: Any, x: Any) -> Any | None: ...
def eager_lowrank_s8(layer: Any, x: Any) -> Any | None: ...
def eager_lowrank_f32(layer: Any, x: Any) -> Any | None: ...
def pack_sparse_f32(w: NDArray[np.float32]) -> NDArray[np.uint8]: ...
def unpack_sparse_f32(packed: NDArray[np.uint8]) -> NDArray[np.float32]: ...
def inspect_sparse_f32(packed: NDArray[np.uint8]) -> _SparseFloatInspection: ...
def spmm_f32(
    x: NDArray[np.float32],
    packed: NDArray[np.uint8],
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    activation: str = "none",
) -> NDArray[np.float32]: ...
def pack_encoder_block(
    config: dict[str, Any],
    qkv: NDArray[np.uint8],
    out: NDArray[np.uint8],
    ffn_in: NDArray[np.uint8],
    ffn_out: NDArray[np.uint8],
    biases: Sequence[NDArray[np.float32] | None],
    norms: Sequence[NDArray[np.float32]],
) -> NDArray[np.uint8]: ...
def inspect_encoder_block(packed: NDArray[np.uint8]) -> _EncoderInspection: ...
def encoder_block(
    x: NDArray[np.float32],
    packed: NDArray[np.uint8],
    keep: NDArray[np.uint8] | NDArray[np.bool_] | None = None,
    score_bias: NDArray[np.float32] | None = None,
    timed: bool = False,
) -> Any: ...
def pack_lowrank_f32(down: NDArray[np.float32], up: NDArray[np.float32]) -> NDArray[np.uint8]: ...
def unpack_lowrank_f32(packed: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
def inspect_lowrank_f32(packed: NDArray[np.uint8]) -> _LowRankInspection: ...
def lowrank_f32(
    x: NDArray[np.float32],
    packed: NDArray[np.uint8],
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    activation: str = "none",
) -> NDArray[np.float32]: ...
def pack_lowrank_s8(
    down: NDArray[np.int8],
    down_scale: NDArray[np.float32],
    up: NDArray[np.int8],
    up_scale: NDArray[np.float32],
    input_scale: NDArray[np.float32] | None = None,
    dense: NDArray[np.int8] | None = None,
    dense_scale: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]: ...
def unpack_lowrank_s8(packed: NDArray[np.uint8]) -> tuple[Any, ...]: ...
def inspect_lowrank_s8(packed: NDArray[np.uint8]) -> _LowRankInspection: ...
def input_scale_lowrank_s8(packed: NDArray[np.uint8]) -> NDArray[np.float32] | None: ...
def lowrank_s8(
    x: NDArray[np.float32],
    packed: NDArray[np.uint8],
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    activation: str = "none",
    x_scale: float = 0.0,
    x_zero_point: int = 0,
) -> NDArray[np.float32]: ...
def packed_bytes_lut4(
    codes: NDArray[np.uint8], table: NDArray[np.int8], scale: NDArray[np.float32], group: int = 0
) -> int: ...
def pack_lut4(
    codes: NDArray[np.uint8],
    table: NDArray[np.int8],
    scale: NDArray[np.float32],
    group: int = 0,
    input_scale: NDArray[np.float32] | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]: ...
def unpack_lut4(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int8], NDArray[np.float32]]: ...
def input_scale_lut4(packed: NDArray[np.uint8]) -> NDArray[np.float32] | None: ...
def inspect_lut4(packed: NDArray[np.uint8]) -> _Lut4Inspection: ...
def gemm_lut4(a: NDArray[np.uint8], packed: NDArray[np.uint8]) -> NDArray[np.int32]: ...
def linear_lut4(
    x: NDArray[np.float32],
    packed: NDArray[np.uint8],
    bias: NDArray[np.float32] | None = None,
    residual: NDArray[np.float32] | None = None,
    activation: str = "none",
    x_scale: float = 0.0,
    x_zero_point: int = 0,
) -> NDArray[np.float32]: ...
def pack_recurrent(
    cell: str,
    input: NDArray[np.int8],
    input_scale: NDArray[np.float32],
    hidden: NDArray[np.int8],
    hidden_scale: NDArray[np.float32],
    input_bias: NDArray[np.float32] | None = None,
    hidden_bias: NDArray[np.float32] | None = None,
) -> NDArray[np.uint8]: ...
def inspect_recurrent(packed: NDArray[np.uint8]) -> _RecurrentInspection: ...
def unpack_recurrent(
    packed: NDArray[np.uint8],
) -> tuple[
    NDArray[np.int8],
    NDArray[np.float32],
    NDArray[np.int8],
    NDArray[np.float32],
    NDArray[np.float32],
    NDArray[np.float32],
]: ...
def pack_embedding(data: NDArray[np.uint8], scale: NDArray[np.float32], dim: int, bits: int) -> NDArray[np.uint8]: ...
def unpack_embedding(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]: ...

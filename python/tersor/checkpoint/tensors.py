"""Between torch tensors and the bytes of a file: dtypes by name, streaming reads and writes, rules for values."""

from __future__ import annotations

from collections.abc import Mapping
from io import FileIO

import torch
from torch import Tensor

from tersor.checkpoint.atomic import write_at
from tersor.checkpoint.container import TensorEntry, read_into
from tersor.checkpoint.strict_json import show
from tersor.errors import CheckpointError

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def specification(tensor: Tensor, name: str) -> tuple[str, tuple[int, ...]]:
    """(dtype name, shape) of a tensor to be saved. Raises CheckpointError where a file cannot hold it."""
    where = f"the tensor {show(name)}"
    if torch.nn.parameter.is_lazy(tensor):
        raise CheckpointError(f"{where} is not initialised yet; run the model once first")
    if tensor.layout is not torch.strided or tensor.is_quantized or type(tensor.data) is not Tensor:
        raise CheckpointError(
            f"{where} is a {type(tensor.data).__name__} of layout {tensor.layout}, not a plain tensor"
        )
    if tensor.is_meta:
        raise CheckpointError(f"{where} is on the meta device and has no values to save")
    if tensor.dtype not in DTYPE_NAMES:
        raise CheckpointError(f"{where} has dtype {tensor.dtype}, which a safetensors file cannot hold")
    return DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)


def write_tensor(file: FileIO, data_start: int, entry: TensorEntry, tensor: Tensor) -> None:
    """Writes the values of ``tensor`` [entry.shape] in row-major order. Raises OSError."""
    plain = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    write_at(file, data_start + entry.begin, _bytes_of(plain))


def read_tensor(file: FileIO, data_start: int, entry: TensorEntry, memory: Tensor | None = None) -> Tensor:
    """Reads one tensor [entry.shape] straight into ``memory``, uint8 [entry.nbytes], or into fresh memory."""
    dtype = TORCH_DTYPES[entry.dtype]
    if memory is None:
        tensor = torch.empty(entry.shape, dtype=dtype, device="cpu")
    else:
        tensor = memory.view(dtype).view(entry.shape)
    target = _bytes_of(tensor)
    read_into(file, data_start + entry.begin, target)
    if entry.dtype == "BOOL" and entry.nbytes and int(tensor.view(torch.uint8).max()) > 1:
        raise CheckpointError(f"the tensor {show(entry.name)} of BOOL holds a byte that is neither 0 nor 1")
    return tensor


def check_values(entry: TensorEntry, key: str, tensor: Tensor) -> None:
    """The rules for tensors of replaced layers, by their key: see "Values" in docs/format.md."""
    if not tensor.numel():
        return
    if key.endswith("_scale") and not bool((torch.isfinite(tensor) & (tensor > 0)).all()):
        raise CheckpointError(f"the scales {show(entry.name)} are not all finite and positive")
    if key.endswith("_q") and entry.dtype == "I8" and int(tensor.min()) == -128:
        raise CheckpointError(f"the weights {show(entry.name)} hold -128; the range is -127 to 127")


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    if not tensor.numel():
        return memoryview(b"")
    return tensor.reshape(-1).view(torch.uint8).numpy().data

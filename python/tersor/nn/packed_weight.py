"""Packed int8 weights as torch tensors: one uint8 [bytes] tensor in the layout of this CPU's kernel.

What only reads a weight also takes one that is packed for a CUDA device (tersor/nn/cuda_weight.py).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from tersor._native import core
from tersor.nn.cuda_weight import input_scale_cuda, to_cuda, unpack_cuda
from tersor.quantize import block_rows, dequantize_s8, quantize_s8_blocks

_OWN_MAPPING_BYTES = 8 << 20


def room(size: int) -> Tensor:
    """Uninitialised uint8 [size].

    A large block is a mapping of its own: the system gives huge pages, which a weight that is read once per call needs,
    to memory that was never touched, and what the allocator hands out may have been.
    """
    if size < _OWN_MAPPING_BYTES:
        return torch.empty(size, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE), dtype=torch.uint8)


def pack_blocks(
    n: int, k: int, blocks: Iterable[tuple[int, Tensor, Tensor]], input_scale: Tensor | None = None
) -> Tensor:
    """Packs an [n, k] weight that arrives in blocks (first row, q int8 [rows, k], scale float32 [rows]).

    The op multiplies its input by input_scale float32 [k] where one is given (smoothing).

    Raises:
        ValueError: n or k is not in [1, 2^31).
        tersor.TersorError: a weight outside [-127, 127], a scale that is not finite and positive.
    """
    native = core()
    with torch.inference_mode(False):
        packed = room(native.packed_bytes_s8(n, k))
    address, size = packed.data_ptr(), packed.numel()
    native.pack_begin_s8(n, k, address, size)
    if input_scale is not None:
        input_scale = input_scale.contiguous()
        native.set_input_scale_s8(input_scale.data_ptr(), address, size)
    for begin, q, scale in blocks:
        q, scale = q.contiguous(), scale.contiguous()
        native.pack_rows_s8(begin, q.shape[0], q.data_ptr(), scale.data_ptr(), address, size)
    return packed


def pack_float(weight: Tensor, input_scale: Tensor | None = None) -> Tensor:
    """Quantises and packs a float weight [n, k]; besides the result only a block of rows is held."""
    n, k = weight.shape
    return pack_blocks(n, k, quantize_s8_blocks(weight, input_scale), input_scale)


def pack_canonical(q: Tensor, scale: Tensor, input_scale: Tensor | None = None) -> Tensor:
    """Packs q int8 [n, k] with scale float32 [n] and, where there is one, input_scale float32 [k]."""
    n, k = q.shape
    rows = block_rows(k)
    blocks = ((i, q[i : i + rows], scale[i : i + rows]) for i in range(0, n, rows))
    return pack_blocks(n, k, blocks, input_scale)


def unpacked_blocks(packed: Tensor, n: int, k: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The inverse of pack_blocks: (first row, q, scale), block by block. The tensors are fresh."""
    native = core()
    rows = block_rows(k)
    for begin in range(0, n, rows):
        count = min(rows, n - begin)
        q = torch.empty((count, k), dtype=torch.int8, device="cpu")
        scale = torch.empty(count, dtype=torch.float32, device="cpu")
        native.unpack_rows_s8(begin, count, packed.data_ptr(), packed.numel(), q.data_ptr(), scale.data_ptr())
        yield begin, q, scale


def unpack(packed: Tensor, n: int, k: int) -> tuple[Tensor, Tensor]:
    """q int8 [n, k] and scale float32 [n], on the CPU; `packed` may be on a CUDA device."""
    if packed.is_cuda:
        q, scale = unpack_cuda(packed, n, k)
        return q.cpu(), scale.cpu()
    q = torch.empty((n, k), dtype=torch.int8, device="cpu")
    scale = torch.empty(n, dtype=torch.float32, device="cpu")
    core().unpack_rows_s8(0, n, packed.data_ptr(), packed.numel(), q.data_ptr(), scale.data_ptr())
    return q, scale


def input_scale_of(packed: Tensor, n: int, k: int) -> Tensor | None:
    """The input_scale float32 [k] that a weight was packed with, on the CPU, or None."""
    if packed.is_cuda:
        there = input_scale_cuda(packed, n, k)
        return None if there is None else there.cpu()
    values = core().input_scale_s8(packed.numpy())
    return None if values is None else torch.from_numpy(values)


def move(packed: Tensor, n: int, k: int, device: torch.device) -> Tensor:
    """The same weight packed for another device, the CPU or a CUDA device; raises as pack_cuda does."""
    if packed.is_cuda and device.type == "cpu":
        return pack_canonical(*unpack(packed, n, k), input_scale_of(packed, n, k))
    return to_cuda(packed, n, k, device) if packed.device.type == "cpu" and device.type == "cuda" else packed.to(device)


@torch.library.custom_op("tersor::dequantize_s8", mutates_args=())
def dequantize(packed: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    """The weight that the packed bytes stand for: q * scale (* input_scale), `dtype` [out_features, in_features]."""
    if packed.is_cuda:
        there = input_scale_cuda(packed, out_features, in_features)
        return dequantize_s8(*unpack_cuda(packed, out_features, in_features), there).to(dtype)
    weight = torch.empty((out_features, in_features), dtype=dtype, device="cpu")
    input_scale = input_scale_of(packed, out_features, in_features)
    for begin, q, scale in unpacked_blocks(packed, out_features, in_features):
        weight[begin : begin + q.shape[0]] = dequantize_s8(q, scale, input_scale)
    return weight


@dequantize.register_fake
def _dequantize_fake(packed: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    return packed.new_empty((out_features, in_features), dtype=dtype)

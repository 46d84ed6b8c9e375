"""Packed int8 weights on a CUDA device: one uint8 [bytes] tensor, as csrc/bindings/torch_ops_cuda.cc reads it.

    scale f32 [n] | col_sum i32 [n] | panels | input_scale f32 [k], in a smoothed layer

Every part starts at a multiple of 256 bytes. There is no header: the layer knows n and k, the size says the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tersor._native import core, cuda

MAX_DEPTH = 65536
"""The deepest product (in_features) whose sums int32 holds; the CUDA kernels do not cut deeper ones into chunks."""


class _Layout(NamedTuple):
    col_sum: int
    panels: int
    input_scale: int
    total: int


def _padded(size: int) -> int:
    return -(-size // 256) * 256


def _layout(n: int, k: int, smoothed: bool) -> _Layout:
    panels = 2 * _padded(4 * n)
    input_scale = panels + _padded(cuda().packed_bytes_gemm_s8(n, k))
    return _Layout(_padded(4 * n), panels, input_scale, input_scale + (_padded(4 * k) if smoothed else 0))


def _stream(device: torch.device) -> int:
    stream: int = torch.cuda.current_stream(device).cuda_stream
    return stream


def pack_cuda(q: Tensor, scale: Tensor, input_scale: Tensor | None, device: torch.device) -> Tensor:
    """Packs q int8 [n, k] with scale float32 [n] and, where there is one, input_scale float32 [k] for a CUDA device.

    Raises:
        ValueError: k is more than MAX_DEPTH.
        tersor.errors.NativeError: this build has no CUDA kernels, or they find no GPU.
    """
    n, k = q.shape
    if k > MAX_DEPTH:
        raise ValueError(f"the CUDA kernels take at most {MAX_DEPTH} in_features, got {k}")
    native, at = cuda(), _layout(n, k, input_scale is not None)
    with torch.inference_mode(False), torch.cuda.device(device):
        packed = torch.zeros(at.total, dtype=torch.uint8, device=device)
        there = q.to(device).contiguous()
        packed[: 4 * n].view(torch.float32).copy_(scale)
        address = packed.data_ptr()
        native.pack_gemm_s8(
            n=n, k=k, w=there.data_ptr(), ldw=k, packed=address + at.panels, col_sum=address + at.col_sum,
            stream=_stream(packed.device),
        )  # fmt: skip
        if input_scale is not None:
            packed[at.input_scale : at.input_scale + 4 * k].view(torch.float32).copy_(input_scale)
    return packed


def unpack_cuda(packed: Tensor, n: int, k: int) -> tuple[Tensor, Tensor]:
    """The inverse of pack_cuda, on the device: q int8 [n, k] and scale float32 [n]."""
    with torch.cuda.device(packed.device):
        q = torch.empty((n, k), dtype=torch.int8, device=packed.device)
        panels = packed.data_ptr() + _layout(n, k, False).panels
        cuda().unpack_gemm_s8(n=n, k=k, packed=panels, w=q.data_ptr(), ldw=k, stream=_stream(packed.device))
        return q, packed[: 4 * n].view(torch.float32).clone()


def input_scale_cuda(packed: Tensor, n: int, k: int) -> Tensor | None:
    """The input_scale float32 [k] that a weight was packed with, on the device, or None."""
    at = _layout(n, k, True)
    if packed.numel() != at.total:
        return None
    return packed[at.input_scale : at.input_scale + 4 * k].view(torch.float32).clone()


def to_cuda(packed: Tensor, n: int, k: int, device: torch.device) -> Tensor:
    """A weight packed for the CPU (tersor.kernels.pack_s8), packed for a CUDA device; raises as pack_cuda does."""
    native = core()
    q = torch.empty((n, k), dtype=torch.int8, device="cpu")
    scale = torch.empty(n, dtype=torch.float32, device="cpu")
    native.unpack_rows_s8(0, n, packed.data_ptr(), packed.numel(), q.data_ptr(), scale.data_ptr())
    input_scale = native.input_scale_s8(packed.numpy())
    return pack_cuda(q, scale, None if input_scale is None else torch.from_numpy(input_scale), device)

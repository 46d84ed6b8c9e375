"""Sparse packed weights as torch tensors: one uint8 [bytes] tensor in the layout of this CPU's sparse kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tersor._native import core
from tersor.nn.packed_weight import room
from tersor.quantize import dequantize_s8


def pack_sparse_s8(q: Tensor, scale: Tensor, input_scale: Tensor | None = None) -> Tensor:
    """Packs q int8 [n, k] with scale float32 [n] and, where there is one, input_scale float32 [k].

    Raises:
        tersor.TersorError: k is above 65536, a weight outside [-127, 127], a scale that is not finite and positive.
    """
    smoothing = None if input_scale is None else input_scale.numpy()
    return _owned(core().pack_sparse_s8(q.numpy(), scale.numpy(), smoothing))


def unpack_sparse_s8(packed: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """q int8 [n, k], scale float32 [n] and input_scale float32 [k] or None."""
    native, block = core(), packed.numpy()
    q, scale = native.unpack_sparse_s8(block)
    input_scale = native.input_scale_sparse_s8(block)
    return (
        torch.from_numpy(q),
        torch.from_numpy(scale),
        None if input_scale is None else torch.from_numpy(input_scale),
    )


@torch.library.custom_op("tersor::dequantize_sparse_s8", mutates_args=())
def dequantize_sparse(packed: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    """The weight that the packed bytes stand for: q * scale (* input_scale), `dtype` [out_features, in_features]."""
    q, scale, input_scale = unpack_sparse_s8(packed)
    return dequantize_s8(q, scale, input_scale).to(dtype)


@dequantize_sparse.register_fake
def _dequantize_fake(packed: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    return packed.new_empty((out_features, in_features), dtype=dtype)


def pack_sparse_f32(weight: Tensor) -> Tensor:
    """Packs weight float32 [n, k]; a -0 becomes 0. Raises tersor.TersorError where n or k is too large."""
    return _owned(core().pack_sparse_f32(weight.contiguous().numpy()))


def unpack_sparse_f32(packed: Tensor) -> Tensor:
    """The weight, float32 [n, k]."""
    return torch.from_numpy(core().unpack_sparse_f32(packed.numpy()))


@torch.library.custom_op("tersor::widen_sparse_f32", mutates_args=())
def widen_sparse(packed: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    """The weight that the packed bytes of spmm_f32 stand for, `dtype` [out_features, in_features]."""
    return unpack_sparse_f32(packed).to(dtype)


widen_sparse.register_fake(_dequantize_fake)


def _owned(array: Any) -> Tensor:
    """A copy of a NumPy array of bytes in memory as packed weights have it."""
    source = torch.from_numpy(array)
    with torch.inference_mode(False):
        return room(source.numel()).copy_(source)

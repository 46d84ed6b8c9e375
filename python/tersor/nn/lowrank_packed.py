"""Packed low-rank weights as torch tensors: one uint8 [bytes] tensor in the layout of this CPU's kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor._native import core
from tersor.nn.packed_weight import room
from tersor.quantize import dequantize_s8

Factors = tuple[Tensor, Tensor]
"""down [rank, in_features] and up [out_features, rank]."""


def pack_lowrank_f32(down: Tensor, up: Tensor) -> Tensor:
    """Packs the factors, float32; raises tersor.TersorError where an extent is too large."""
    return _owned(torch.from_numpy(core().pack_lowrank_f32(down.contiguous().numpy(), up.contiguous().numpy())))


def unpack_lowrank_f32(packed: Tensor) -> Factors:
    """The factors, float32."""
    down, up = core().unpack_lowrank_f32(packed.numpy())
    return torch.from_numpy(down), torch.from_numpy(up)


def pack_lowrank_s8(down: Factors, up: Factors, input_scale: Tensor | None = None) -> Tensor:
    """Packs (q int8 [n, k], scale float32 [n]) of each factor and an input_scale float32 [in_features], if any.

    Raises:
        tersor.TersorError: a weight outside [-127, 127], a scale that is not finite and positive, an extent too large.
    """
    arrays = [part.contiguous().numpy() for part in (*down, *up)]
    smoothing = None if input_scale is None else input_scale.numpy()
    return _owned(torch.from_numpy(core().pack_lowrank_s8(*arrays, smoothing)))


def unpack_lowrank_s8(packed: Tensor) -> tuple[Factors, Factors, Tensor | None]:
    """(q, scale) of down and of up, and input_scale or None."""
    native, block = core(), packed.numpy()
    down, down_scale, up, up_scale = (torch.from_numpy(part) for part in native.unpack_lowrank_s8(block)[:4])
    input_scale = native.input_scale_lowrank_s8(block)
    return (down, down_scale), (up, up_scale), None if input_scale is None else torch.from_numpy(input_scale)


@torch.library.custom_op("tersor::widen_lowrank_f32", mutates_args=())
def widen_lowrank(packed: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    """The weight that the packed bytes of lowrank_f32 stand for, `dtype` [out_features, in_features]."""
    down, up = unpack_lowrank_f32(packed)
    return (up @ down).to(dtype)


@torch.library.custom_op("tersor::dequantize_lowrank_s8", mutates_args=())
def dequantize_lowrank(packed: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    """The weight that the packed bytes of lowrank_s8 stand for, `dtype` [out_features, in_features]."""
    down, up, input_scale = unpack_lowrank_s8(packed)
    return (dequantize_s8(*up) @ dequantize_s8(*down, input_scale)).to(dtype)


@widen_lowrank.register_fake
@dequantize_lowrank.register_fake
def _weight_fake(packed: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    return packed.new_empty((out_features, in_features), dtype=dtype)


def _owned(source: Tensor) -> Tensor:
    """A copy in memory as packed weights have it."""
    with torch.inference_mode(False):
        return room(source.numel()).copy_(source)

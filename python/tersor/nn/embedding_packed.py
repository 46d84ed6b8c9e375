"""Quantised embedding rows as one uint8 [bytes] tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tersor._native import core
from tersor.nn.packed_weight import room

_FLOAT32 = torch.finfo(torch.float32)


def quantize_rows_4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [n, dim] to uint8 [n, (dim + 1) // 2] and scale float32 [n]: max |w| / 7, round to nearest even.

    Byte i has value i plus 8 in its low half, and value (dim + 1) // 2 + i plus 8 in its high half.
    """
    wide = weight.detach().float()
    peak = wide.abs().amax(dim=1)
    scale = torch.where(peak > 0, (peak / 7).clamp_min(_FLOAT32.tiny), torch.ones_like(peak))
    q = (wide / scale[:, None]).round_().clamp_(-7, 7).to(torch.int16) + 8
    half = -(-weight.shape[1] // 2)
    low, high = q[:, :half], torch.full((len(q), half), 8, dtype=torch.int16)
    high[:, : weight.shape[1] - half] = q[:, half:]
    return (low | high << 4).to(torch.uint8), scale


def widen(tensors: Mapping[str, Tensor], dim: int) -> Tensor:
    """The rows that the canonical tensors stand for, float32 [n, dim]."""
    scale = tensors["weight_scale"][:, None]
    if "weight_q" in tensors:
        return tensors["weight_q"].float() * scale
    both = tensors["weight_q4"]
    q = torch.cat([both & 15, both >> 4], dim=1)[:, :dim].float() - 8
    return q * scale


def pack_embedding(tensors: Mapping[str, Tensor], dim: int, bits: int) -> Tensor:
    """Packs canonical tensors; raises tersor.TersorError where a scale is not finite and positive."""
    data = tensors["weight_q"].view(torch.uint8) if bits == 8 else tensors["weight_q4"]
    packed = torch.from_numpy(
        core().pack_embedding(data.contiguous().numpy(), tensors["weight_scale"].contiguous().numpy(), dim, bits)
    )
    with torch.inference_mode(False):
        return room(packed.numel()).copy_(packed)


def unpack_embedding(packed: Tensor, bits: int) -> dict[str, Tensor]:
    """The canonical tensors that pack_embedding was given."""
    data, scale = (torch.from_numpy(array) for array in core().unpack_embedding(packed.numpy()))
    named = {"weight_q": data.view(torch.int8)} if bits == 8 else {"weight_q4": data}
    return {**named, "weight_scale": scale}


def check_rows(weight: Tensor, shape: tuple[int, int]) -> Tensor:
    """A float weight of this shape; raises ValueError where it has another or holds NaN or infinity."""
    if tuple(weight.shape) != shape or weight.device.type != "cpu":
        raise ValueError(f"weight: expected {list(shape)} on cpu, got {list(weight.shape)} on {weight.device}")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("the weight holds NaN or infinity")
    return weight

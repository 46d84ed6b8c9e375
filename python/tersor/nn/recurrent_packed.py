"""Int8 weights of recurrent layers as one uint8 [bytes] tensor: a block for each layer and direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tersor._native import core
from tersor.nn.packed_weight import room

_PARTS = ("weight_ih", "weight_hh")
_BIASES = ("bias_ih", "bias_hh")


def pack_recurrent(cell: str, tensors: Mapping[str, Tensor], suffixes: Sequence[str]) -> Tensor:
    """Packs the canonical tensors of each suffix (such as "_l0_reverse"), one block after the other.

    Args:
        cell: "gru" or "lstm".
        tensors: for each suffix s weight_ih{s}_q int8 [gates * hidden, in] and weight_ih{s}_scale float32
            [gates * hidden], the same of weight_hh, and bias_ih{s}, bias_hh{s} float32 [gates * hidden] or neither.

    Raises:
        tersor.TersorError: a weight outside [-127, 127], a scale that is not finite and positive.
    """
    native, blocks = core(), []
    for s in suffixes:
        names = [f"{part}{s}_{kind}" for part in _PARTS for kind in ("q", "scale")]
        arrays = [tensors[name].contiguous().numpy() for name in names]
        biases = [tensors[name + s].contiguous().numpy() for name in _BIASES if name + s in tensors]
        blocks.append(torch.from_numpy(native.pack_recurrent(cell, *arrays, *biases)))
    with torch.inference_mode(False):
        packed = room(sum(block.numel() for block in blocks))
        at = 0
        for block in blocks:
            packed[at : at + block.numel()] = block
            at += block.numel()
    return packed


def block_offsets(packed: Tensor) -> tuple[int, ...]:
    """Where each block of `packed` begins."""
    native, data, offsets, at = core(), packed.numpy(), [], 0
    while at < data.size:
        offsets.append(at)
        at += native.inspect_recurrent(data[at:])["bytes"]
    return tuple(offsets)


def unpack_recurrent(packed: Tensor, suffixes: Sequence[str]) -> dict[str, Tensor]:
    """The canonical tensors that pack_recurrent was given."""
    native, data, tensors = core(), packed.numpy(), {}
    for s, at in zip(suffixes, block_offsets(packed), strict=True):
        names = [f"{part}{s}_{kind}" for part in _PARTS for kind in ("q", "scale")]
        names += [name + s for name in _BIASES]
        for name, array in zip(names, native.unpack_recurrent(data[at:]), strict=True):
            if array.size:
                tensors[name] = torch.from_numpy(array)
    return tensors

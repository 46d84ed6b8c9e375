"""The torch ops. Importing this module loads `_torch_ops.so` and raises NativeError when it cannot."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from tersor._native import torch_ops

torch_ops()

ACTIVATIONS: Final[dict[str, int]] = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}
"""Codes of the op's `activation` argument; the same as in csrc/include/tersor/types.h."""

LINEAR_S8: Final = torch.ops.tersor.linear_s8.default
"""linear_s8(x, packed, bias, residual, out_features, activation, x_scale, x_zero_point) -> Tensor

activation(x W^T + bias + residual) on the CPU, in one native call without autograd.

x: float32, bfloat16 or float16 [..., in_features], any strides.
packed: uint8 [bytes], a packed weight (tersor.kernels.pack_s8).
bias: [out_features], float32 or the dtype of x; an empty tensor means none.
residual: the dtype of x and the shape of the result; an empty tensor means none.
activation: one of the codes in ACTIVATIONS.
x_scale, x_zero_point: 0.0 quantises each row of x by its own range; a positive scale is used for all rows.

Returns a contiguous tensor [..., out_features] of the dtype of x. Raises RuntimeError, naming what was expected and
what was got. Runs on torch's own threads, at most as many as the process has CPUs.
"""

LINEAR_LUT4: Final = torch.ops.tersor.linear_lut4.default
"""linear_lut4(x, packed, bias, residual, out_features, activation, x_scale, x_zero_point) -> Tensor

LINEAR_S8 with a code book weight (tersor.kernels.pack_lut4). Arguments, result and errors are those of LINEAR_S8.
"""

RECURRENT_S8: Final = torch.ops.tersor.recurrent_s8.default
"""recurrent_s8(x, packed, offset, batch_sizes, state, cell, reverse) -> (Tensor, Tensor, Tensor)

One direction of a GRU or LSTM on the CPU, in one native call without autograd.

x: float32 [rows, input], the rows of step after step, as in PackedSequence.data.
packed, offset: uint8 [bytes], and where in it the block of this layer and direction begins.
batch_sizes: int64 [steps], as in PackedSequence.
state, cell: float32 [batch, hidden], what the sequences begin with; for a GRU the cell is an empty tensor.
reverse: 1 goes from the last step to the first.

Returns the outputs [rows, hidden], the last state and the last cell, which is empty for a GRU.
"""

EMBEDDING_S8: Final = torch.ops.tersor.embedding_s8.default
"""embedding_s8(indices, packed, dim) -> Tensor

The rows of a packed embedding (tersor.nn.Int8Embedding) as float32 [count, dim]; indices int64 [count].
"""

EMBEDDING_BAG_S8: Final = torch.ops.tersor.embedding_bag_s8.default
"""embedding_bag_s8(indices, packed, offsets, weights, dim, mode, padding) -> Tensor

Sums (mode 0), means (1) or maxima (2) of rows, float32 [bags, dim]; offsets int64 [bags + 1] from 0 to count. `weights`
float32 [count] of a sum, or empty; the index `padding` takes no part.
"""

SPMM_S8: Final = torch.ops.tersor.spmm_s8.default
"""spmm_s8(x, packed, bias, residual, out_features, activation, x_scale, x_zero_point) -> Tensor

LINEAR_S8 with a sparse packed weight (tersor.kernels.pack_sparse_s8): the same numbers, bit for bit, as with the dense
one. Arguments, result and errors are those of LINEAR_S8.
"""

SPMM_F32: Final = torch.ops.tersor.spmm_f32.default
"""spmm_f32(x, packed, bias, residual, out_features, activation) -> Tensor

activation(x W^T + bias + residual) with a sparse float32 weight (tersor.kernels.pack_sparse_f32) and sums in float32.
Arguments, result and errors are those of LINEAR_S8.
"""

LOWRANK_S8: Final = torch.ops.tersor.lowrank_s8.default
"""lowrank_s8(x, packed, bias, residual, out_features, activation, x_scale, x_zero_point) -> Tensor

activation((x V) U + bias + residual) with two int8 factors (tersor.kernels.pack_lowrank_s8), x V being quantised row by
row. Arguments, result and errors are those of LINEAR_S8.
"""

LOWRANK_F32: Final = torch.ops.tersor.lowrank_f32.default
"""lowrank_f32(x, packed, bias, residual, out_features, activation) -> Tensor

activation((x V) U + bias + residual) with two float32 factors (tersor.kernels.pack_lowrank_f32) and sums in float32.
Arguments, result and errors are those of LINEAR_S8.
"""

ENCODER_BLOCK: Final = torch.ops.tersor.encoder_block.default
"""encoder_block(x, keep, score_bias, packed) -> Tensor

One encoder block of a transformer on the CPU, in one native call without autograd: attention and feed-forward layers
with int8 weights, residuals and LayerNorms. docs/encoder.md has the definition.

x: float32, bfloat16 or float16 [batch, tokens, hidden], any strides.
keep: uint8 or bool [batch, tokens], 0 where a token is padding; an empty tensor means that every token is real.
score_bias: float32 [heads, tokens, tokens], added to the scaled scores of every sequence; an empty tensor means none.
packed: uint8 [bytes], a packed encoder block (tersor.kernels.pack_encoder_block).

Returns a contiguous tensor of the shape and dtype of x; rows of padding are zeros. Raises RuntimeError, naming what was
expected and what was got. Runs on torch's own threads, at most as many as the process has CPUs.
"""

GRAPH_S8: Final = torch.ops.tersor.graph_s8.default
"""graph_s8(x, packed, bias, out_channels, out_height, out_width) -> Tensor

A packed graph of int8 convolutions, poolings and additions on the CPU, in one native call without autograd.

x: float32 [n, channels, height, width], any strides.
packed: uint8 [bytes], a packed graph.
bias: [out_channels] float32 in place of that of the last convolution; an empty tensor means its own.
out_channels, out_height, out_width: of the result, which is [n, out_channels, out_height, out_width] channels last;
with a height and width of 0, and a result of one pixel, [n, out_channels].

Raises RuntimeError, naming what was expected and what was got. Runs on torch's own threads, at most as many as the
process has CPUs.
"""


def _linear_fake(op: str, x: Tensor, out_features: int) -> Tensor:
    if x.dim() < 1:
        raise RuntimeError(f"tersor::{op}: x: expected shape [..., in_features], got []")
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise RuntimeError(f"tersor::{op}: x: expected float32, bfloat16 or float16, got {x.dtype}")
    return x.new_empty((*x.shape[:-1], out_features))


def _register_linear(op: str) -> None:
    def fake(x: Tensor, packed: Tensor, bias: Tensor, residual: Tensor, out_features: int, *settings: float) -> Tensor:
        return _linear_fake(op, x, out_features)

    torch.library.register_fake(f"tersor::{op}", fake)


for _op in ("linear_s8", "linear_lut4", "spmm_s8", "spmm_f32", "lowrank_s8", "lowrank_f32"):
    _register_linear(_op)


def _encoder_block_fake(x: Tensor, keep: Tensor, score_bias: Tensor, packed: Tensor) -> Tensor:
    if x.dim() != 3:
        raise RuntimeError(f"tersor::encoder_block: x: expected shape [batch, tokens, hidden], got {list(x.shape)}")
    return _linear_fake("encoder_block", x, x.shape[-1])


def _graph_s8_fake(
    x: Tensor, packed: Tensor, bias: Tensor, out_channels: int, out_height: int, out_width: int
) -> Tensor:
    if x.dim() != 4 or x.dtype != torch.float32:
        raise RuntimeError(
            f"tersor::graph_s8: x: expected float32 [n, channels, height, width], got {x.dtype} {list(x.shape)}"
        )
    if out_height == 0 and out_width == 0:
        return x.new_empty((x.shape[0], out_channels))
    shape = (x.shape[0], out_channels, out_height, out_width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


torch.library.register_fake("tersor::graph_s8", _graph_s8_fake)
torch.library.register_fake("tersor::encoder_block", _encoder_block_fake)


def _recurrent_s8_fake(
    x: Tensor, packed: Tensor, offset: int, batch_sizes: Tensor, state: Tensor, cell: Tensor, reverse: int
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty((x.shape[0], state.shape[1])), torch.empty_like(state), torch.empty_like(cell)


torch.library.register_fake("tersor::recurrent_s8", _recurrent_s8_fake)


def _embedding_s8_fake(indices: Tensor, packed: Tensor, dim: int) -> Tensor:
    return packed.new_empty((indices.shape[0], dim), dtype=torch.float32)


def _embedding_bag_s8_fake(
    indices: Tensor, packed: Tensor, offsets: Tensor, weights: Tensor, dim: int, mode: int, padding: int
) -> Tensor:
    return packed.new_empty((offsets.shape[0] - 1, dim), dtype=torch.float32)


torch.library.register_fake("tersor::embedding_s8", _embedding_s8_fake)
torch.library.register_fake("tersor::embedding_bag_s8", _embedding_bag_s8_fake)

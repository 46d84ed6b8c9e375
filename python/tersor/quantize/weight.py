"""Symmetric int8 weights, one scale per output channel.

scale[i] = max |w[i]| / 127 and q[i, j] = round_half_even(w[i, j] / scale[i]), so |w - q * scale| <= scale / 2.
The method is that of Wu et al., "Integer quantization for deep learning inference", 2020, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

ROW_MULTIPLE = 64  # kPackRowsS8 of tersor/linear_s8.h
_BLOCK_ELEMENTS = 1 << 20
_LIMIT = 127.0
_FLOAT32 = torch.finfo(torch.float32)
_SMALLEST_SCALE = _FLOAT32.tiny
_LARGEST_SCALE = _FLOAT32.max / _LIMIT * (1 - _FLOAT32.eps)  # 127 times it is finite


def block_rows(columns: int) -> int:
    """Rows per block: a multiple of ROW_MULTIPLE that keeps a block near one million elements."""
    return max(_BLOCK_ELEMENTS // max(columns, 1) // ROW_MULTIPLE, 1) * ROW_MULTIPLE


def quantize_s8(weight: Tensor, input_scale: Tensor | None = None, *, first_row: int = 0) -> tuple[Tensor, Tensor]:
    """Quantises weight [n, k] (float) to q int8 [n, k] in [-127, 127] and scale float32 [n].

    What is quantised is weight / input_scale where an input_scale float32 [k] is given, see tersor.quantize.smoothing.
    A row of zeros gets scale 1. Scales are normal numbers: a row that is too small for that rounds towards zero.
    `first_row` is what an error counts rows from.

    Raises:
        ValueError: the weight is not a 2-d floating-point tensor, or holds NaN or infinity.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"expected a 2-d floating-point weight, got {weight.dtype} {list(weight.shape)}")
    n, k = weight.shape
    if n == 0 or k == 0:
        return torch.zeros((n, k), dtype=torch.int8), torch.ones(n)
    w = weight.detach().to(torch.float32)  # [n, k]
    if input_scale is not None:
        w = w / input_scale
    low, high = torch.aminmax(w, dim=1)
    peak = torch.maximum(high, -low)  # [n]
    bad = torch.nonzero(~torch.isfinite(peak))
    if bad.numel():
        what = "the weight" if input_scale is None else "the weight divided by input_scale"
        raise ValueError(f"{what} holds NaN or infinity, first in row {first_row + int(bad[0])}")
    scale = torch.where(peak > 0, (peak / _LIMIT).clamp(_SMALLEST_SCALE, _LARGEST_SCALE), torch.ones_like(peak))
    q = (w / scale[:, None]).round_().clamp_(-_LIMIT, _LIMIT).to(torch.int8)
    return q, scale


def quantize_s8_blocks(weight: Tensor, input_scale: Tensor | None = None) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields (first row, q, scale) for blocks of rows of weight [n, k], so that no second float copy exists."""
    rows = block_rows(weight.shape[1])
    for begin in range(0, weight.shape[0], rows):
        q, scale = quantize_s8(weight[begin : begin + rows], input_scale, first_row=begin)
        yield begin, q, scale


def dequantize_s8(q: Tensor, scale: Tensor, input_scale: Tensor | None = None) -> Tensor:
    """q int8 [n, k] times scale float32 [n], and times input_scale float32 [k] where there is one: float32 [n, k]."""
    weight = q.to(torch.float32).mul_(scale[:, None])
    return weight if input_scale is None else weight.mul_(input_scale)

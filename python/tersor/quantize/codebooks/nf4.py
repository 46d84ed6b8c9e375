"""Quantiles of the normal distribution."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tersor.quantize.codebooks.codes import LIMIT
from tersor.quantize.codebooks.registry import CodeBook, int8_table, register_codebook


@register_codebook
class NormalFloat(CodeBook):
    """NormalFloat: with N = 2^bits, N/2 positive entries, 0, and N/2 - 1 negative ones, divided by the largest.

    The positive ones are the normal quantiles of ``linspace(o, 1/2, N/2 + 1)`` without the last, the negative ones
    those of ``linspace(o, 1/2, N/2)`` without the last, negated, with ``o = 1 - (1/(2N) + 1/(2(N - 1))) / 2``. For 4
    bits that is NF4.

    Source: Dettmers et al., QLoRA, 2023 (arXiv 2305.14314), section 3. There the scale is max|w|; here it is the one
    with the least squared error.
    """

    name: ClassVar[str] = "nf4"

    def table(self, weight: Tensor, bits: int, group_size: int, importance: Tensor | None) -> Tensor:
        entries = normal_quantiles(bits)
        return int8_table(LIMIT * entries, bits)


def normal_quantiles(bits: int) -> Tensor:
    """The ``2^bits`` values in [-1, 1], ascending, float64."""
    count = 2**bits
    offset = 1 - (1 / (2 * count) + 1 / (2 * (count - 1))) / 2
    positive = torch.special.ndtri(torch.linspace(offset, 0.5, count // 2 + 1, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(offset, 0.5, count // 2, dtype=torch.float64)[:-1])
    entries = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive]).sort().values
    return entries / entries.abs().max()

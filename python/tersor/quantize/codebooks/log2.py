"""Signed powers of two."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from tersor.quantize.codebooks.exponential import exponential_table
from tersor.quantize.codebooks.registry import CodeBook, register_codebook


@register_codebook
class Log2(CodeBook):
    """0 and ``±2^-e``, ``e = 0 .. 2^(bits - 1) - 2``, in the int8 table as ±64, ±32 .. ±1, exactly.

    Seven powers are all that int8 holds: 5 to 8 bits give what 4 bits give.

    Source: Miyashita et al., Convolutional neural networks using logarithmic data representation, 2016 (arXiv
    1603.01025); here the scale is free, so that the powers sit where the weights are.
    """

    name: ClassVar[str] = "log2"
    ratios: ClassVar[tuple[float, ...]] = tuple(0.5 + 0.05 * step for step in range(18))  # 0.5 to 1.35

    def table(self, weight: Tensor, bits: int, group_size: int, importance: Tensor | None) -> Tensor:
        return exponential_table(2, bits)

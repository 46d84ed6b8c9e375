"""Powers of one base and their negatives: steps that grow with the weight."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tersor.quantize.codebooks.codes import LIMIT, decode, encode
from tersor.quantize.codebooks.registry import CodeBook, int8_table, register_codebook
from tersor.quantize.codebooks.scales import fit_scale, spread

_SAMPLE = 1 << 14
_BASES = 24


def exponential_table(base: float, bits: int) -> Tensor:
    """0 and ``±round(P base^-e)`` for ``e = 0 .. 2^(bits - 1) - 2``, int8 ``[2^bits]``, the largest one twice.

    P is 127, but 64 for base 2, whose powers are then exact. Entries of less than one half round to 0, which is all
    that int8 has room for: base 2 has 15 different entries whatever the bits.
    """
    peak = 64.0 if base == 2 else float(LIMIT)
    powers = peak * base ** -torch.arange(2 ** (bits - 1) - 1, dtype=torch.float64)
    return int8_table(torch.cat([-powers, torch.zeros(1), powers]), bits)


@register_codebook
class Exponential(CodeBook):
    """0 and ``±b^-e``, ``e = 0 .. 2^(bits - 1) - 2``, with the base b in (1, 2] that fits the weight best.

    The bases tried are 2 and those for which the smallest power is ``1 / r``, r from 2 to 254 in equal factors. The
    choice is made on a sample of rows. ``log2`` is the same with b = 2.
    """

    name: ClassVar[str] = "exponential"
    ratios: ClassVar[tuple[float, ...]] = tuple(0.5 + 0.05 * step for step in range(18))  # 0.5 to 1.35

    def table(self, weight: Tensor, bits: int, group_size: int, importance: Tensor | None) -> Tensor:
        step = max(weight.numel() // _SAMPLE, 1)
        rows, counts = weight[::step], spread(importance, weight.shape)[::step]
        steps = 2 ** (bits - 1) - 2
        reach = 2 * 127.0 ** torch.linspace(0, 1, _BASES, dtype=torch.float64)  # 2 to 254
        bases = {2.0, *(base for base in (reach ** (1 / max(steps, 1))).tolist() if base < 2)}
        tables = [exponential_table(base, bits) for base in sorted(bases)]
        return min(tables, key=lambda table: self._error(table, rows, group_size, counts))

    def _error(self, table: Tensor, rows: Tensor, group_size: int, counts: Tensor) -> float:
        scale = fit_scale(rows, table, group_size, self.ratios[::3], counts)
        fitted = decode(encode(rows, table, scale, len(table).bit_length() - 1, group_size))
        return float((fitted - rows).square_().mul_(counts).sum(dtype=torch.float64))

"""Equal steps with a zero point: for weights that lie more on one side of 0."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tersor.quantize.codebooks.codes import Codes, check_weight, encode
from tersor.quantize.codebooks.registry import CodeBook, register_codebook
from tersor.quantize.codebooks.scales import fit_scale, grouped, safe_scale, spread


@register_codebook
class Affine(CodeBook):
    """The integers ``-z .. 2^bits - 1 - z`` with a zero point ``z`` in ``[0, 2^bits - 1]`` per row or group.

    ``z`` and the scale map the range of the weights, shrunk on both sides by the ratio with the least squared error,
    to the codes. The table is ``[out, 2^bits]``, with groups ``[out, groups, 2^bits]``.
    """

    name: ClassVar[str] = "affine"
    most_bits: ClassVar[int] = 7

    def table(self, weight: Tensor, bits: int, group_size: int, importance: Tensor | None) -> Tensor:
        w, counts = grouped(weight, group_size), grouped(spread(importance, weight.shape), group_size)
        low, high = w.amin(2).clamp_max(0), w.amax(2).clamp_min(0)  # [out, groups]; padding is 0 and inside
        most, best, least = 2**bits - 1, torch.zeros_like(low), torch.full_like(low, float("inf"))
        for ratio in self.ratios:
            scale = safe_scale((high - low) * (ratio / most))
            zero = (-low * ratio / scale).round().clamp(0, most)
            code = (w / scale[..., None] + zero[..., None]).round().clamp(0, most)
            error = ((code - zero[..., None]) * scale[..., None] - w).square().mul(counts).sum(2)
            better = error < least
            best, least = torch.where(better, zero, best), torch.where(better, error, least)
        table = (torch.arange(2**bits) - best[..., None]).to(torch.int8)  # [out, groups, entries]
        return table[:, 0] if table.shape[1] == 1 else table

    def fit(self, weight: Tensor, bits: int, group_size: int | None = None, importance: Tensor | None = None) -> Codes:
        wide = check_weight(weight)
        size = self._group_size(wide, bits, group_size)
        table = self.table(wide, bits, size, importance)
        # The entry that the far end of the range meets is rarely the largest one, so larger scales are tried too.
        ratios = [*self.ratios, 1.05, 1.1, 1.2, 1.4, 1.7, 2.0]
        return encode(wide, table, fit_scale(wide, table, size, ratios, importance), bits, size)

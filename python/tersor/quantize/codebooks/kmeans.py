"""A table of its own for every weight: one-dimensional k-means."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tersor.quantize.codebooks.codes import LIMIT
from tersor.quantize.codebooks.registry import CodeBook, register_codebook
from tersor.quantize.codebooks.scales import grouped, safe_scale, spread

BINS = 4096
_ROUNDS = 60


@register_codebook
class KMeans(CodeBook):
    """The entries with the least squared error for the weights, each divided by the largest of its row or group.

    Lloyd's iterations run on a histogram of 4096 bins; they start where the cube root of the density has equal shares,
    which is optimal for many entries (Panter and Dite, 1951). One entry is 0 throughout.

    Args:
        per_channel: a table for every row instead of one for the layer. Memory: 16 KiB a row while it is fitted.

    Source: Han et al., Deep compression, 2016 (arXiv 1510.00149), section 3.
    """

    name: ClassVar[str] = "kmeans"

    def __init__(self, per_channel: bool = False) -> None:
        self.per_channel = per_channel

    def table(self, weight: Tensor, bits: int, group_size: int, importance: Tensor | None) -> Tensor:
        counts = _histogram(weight, group_size, importance)  # [out, BINS]
        if not self.per_channel:
            return lloyd(counts.sum(0, keepdim=True), bits)[0]
        return lloyd(counts, bits)


def _histogram(weight: Tensor, group_size: int, importance: Tensor | None) -> Tensor:
    w = grouped(weight, group_size)  # [out, groups, size]
    peak = safe_scale(w.abs().amax(2, keepdim=True))
    place = ((w / peak + 1) * (BINS / 2)).floor_().clamp_(0, BINS - 1).to(torch.int64)
    # An error in units of the group's scale counts with the square of that scale.
    mass = grouped(spread(importance, weight.shape), group_size) * peak.square()
    mass = mass * (w != 0)  # zeros have an entry of their own, and padding is zeros
    counts = torch.zeros(len(weight), BINS, dtype=torch.float64)
    return counts.scatter_add_(1, place.flatten(1), mass.flatten(1).to(torch.float64))


def lloyd(counts: Tensor, bits: int) -> Tensor:
    """Tables for histograms over [-1, 1]: counts float64 ``[rows, BINS]`` to int8 ``[rows, 2^bits]``."""
    centre = (torch.arange(BINS, dtype=torch.float64) + 0.5) * (2 / BINS) - 1
    mass = torch.cat([torch.zeros(len(counts), 1, dtype=torch.float64), counts.cumsum(1)], 1)  # [rows, BINS + 1]
    moment = torch.cat([torch.zeros(len(counts), 1, dtype=torch.float64), (counts * centre).cumsum(1)], 1)
    entries = _start(counts, centre, 2**bits)
    zero = entries == 0  # stays in its place, because the entries beside it keep their signs
    for _ in range(_ROUNDS):
        border = (entries[:, 1:] + entries[:, :-1]) / 2
        cut = ((border + 1) * (BINS / 2)).round_().to(torch.int64)
        ends = torch.cat([torch.zeros(len(cut), 1, dtype=torch.int64), cut, torch.full((len(cut), 1), BINS)], 1)
        inside = mass.gather(1, ends).diff(dim=1)
        mean = moment.gather(1, ends).diff(dim=1) / inside.clamp_min(1e-300)
        updated = torch.where((inside > 0) & ~zero, mean, entries)
        if torch.equal(updated, entries):
            break
        entries = updated
    return (entries * LIMIT).round_().to(torch.int8)


def _start(counts: Tensor, centre: Tensor, entries: int) -> Tensor:
    # Wider bins first, so that bins without a weight don't make the start ragged.
    smooth = torch.nn.functional.avg_pool1d(counts[:, None], 65, stride=1, padding=32)[:, 0]
    share = (smooth.clamp_min(0) ** (1 / 3) + 1e-300).cumsum(1)
    wanted = (torch.arange(entries - 1, dtype=torch.float64) + 0.5) / (entries - 1) * share[:, -1:]
    found = centre[torch.searchsorted(share, wanted).clamp_max_(BINS - 1)]  # never 0: a middle of a bin
    return torch.cat([found, torch.zeros(len(counts), 1, dtype=torch.float64)], 1).sort(1).values

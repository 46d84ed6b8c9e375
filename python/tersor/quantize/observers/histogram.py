"""The base of observers that weigh how often values occur."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.quantize.observers.registry import Granularity, Observer

BINS = 2048


class HistogramObserver(Observer):
    """Counts values in 2048 bins over [-reach, reach], a reach per unit.

    The reach is a power of two. Where a value lies outside, the reach doubles and pairs of bins become one, so that
    counts stay exact, the memory stays the same, and a bin is at most 1/512 of the largest value wide.
    Merged counts are those of one observer that saw everything.
    """

    def __init__(self, granularity: Granularity = "tensor", group_size: int | None = None) -> None:
        super().__init__(granularity, group_size)
        self.counts = torch.zeros(0, BINS, dtype=torch.float64)
        self.reach = torch.zeros(0, dtype=torch.float64)
        self.low, self.high = torch.zeros(0), torch.zeros(0)

    def _grow(self, count: int) -> None:
        self.counts = torch.cat([self.counts, torch.zeros(count, BINS, dtype=torch.float64)])
        self.reach = torch.cat([self.reach, torch.zeros(count, dtype=torch.float64)])
        self.low, self.high = (torch.cat([t, torch.zeros(count)]) for t in (self.low, self.high))

    def _see(self, rows: Tensor) -> None:
        seen = slice(len(rows))
        low, high = torch.aminmax(rows, dim=1)
        self.low[seen] = torch.minimum(self.low[seen], low)
        self.high[seen] = torch.maximum(self.high[seen], high)
        self._widen(_power_above(torch.maximum(high, -low)), seen)
        reach = self.reach[seen].clamp_min(1e-300)[:, None]
        place = (rows.to(torch.float64) / reach + 1).mul_(BINS / 2).floor_().clamp_(0, BINS - 1).to(torch.int64)
        place += torch.arange(len(rows))[:, None] * BINS
        found = torch.bincount(place.flatten(), minlength=len(rows) * BINS)
        self.counts[seen] += found.reshape(-1, BINS)

    def _merge(self, other: HistogramObserver) -> None:
        seen = slice(other.units)
        self.low[seen] = torch.minimum(self.low[seen], other.low)
        self.high[seen] = torch.maximum(self.high[seen], other.high)
        self._widen(other.reach, seen)
        self.counts[seen] += _widened(other.counts, other.reach, self.reach[seen])

    def _widen(self, reach: Tensor, seen: slice) -> None:
        wide = torch.maximum(self.reach[seen], reach)
        self.counts[seen] = _widened(self.counts[seen], self.reach[seen], wide)
        self.reach[seen] = wide

    def bins(self) -> Tensor:
        """The middle of every bin, float64 ``[units, BINS]``; that of all-zero units is 0."""
        middle = (torch.arange(BINS, dtype=torch.float64) + 0.5) * (2 / BINS) - 1
        return self.reach[:, None] * middle

    def edges(self) -> Tensor:
        """Where bins begin and the last one ends, float64 ``[units, BINS + 1]``."""
        return self.reach[:, None] * (torch.arange(BINS + 1, dtype=torch.float64) * (2 / BINS) - 1)


def _power_above(peak: Tensor) -> Tensor:
    """The smallest power of two above every peak; 0 for 0. Values at the reach itself would have no bin."""
    exponent = torch.frexp(peak.to(torch.float64))[1]
    return torch.where(peak > 0, torch.ldexp(torch.ones_like(peak, dtype=torch.float64), exponent), 0.0)


def _widened(counts: Tensor, reach: Tensor, wanted: Tensor) -> Tensor:
    """Counts ``[units, BINS]`` over [-reach, reach] as counts over [-wanted, wanted], powers of two.

    A reach of 0 says that only zeros were seen: they are in the bin that begins at 0, whatever the reach.
    """
    reach = torch.where(reach == 0, wanted, reach)
    while bool((narrow := reach < wanted).any()):
        merged = torch.zeros(int(narrow.sum()), BINS, dtype=torch.float64)
        merged[:, BINS // 4 : 3 * BINS // 4] = counts[narrow].reshape(-1, BINS // 2, 2).sum(2)
        counts = counts.clone()
        counts[narrow] = merged
        reach = torch.where(narrow, 2 * reach, reach)
    return counts

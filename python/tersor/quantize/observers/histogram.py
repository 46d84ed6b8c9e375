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
        self._reach_for(torch.maximum(high, -low).to(torch.float64), seen)
        reach = self.reach[seen].clamp_min(1e-300)[:, None]
        place = (rows.to(torch.float64) / reach + 1).mul_(BINS / 2).floor_().clamp_(0, BINS - 1).to(torch.int64)
        place += torch.arange(len(rows))[:, None] * BINS
        found = torch.bincount(place.flatten(), minlength=len(rows) * BINS)
        self.counts[seen] += found.reshape(-1, BINS)

    def _reach_for(self, peak: Tensor, seen: slice) -> None:
        """Doubles the reach of the units whose peak lies outside; a first reach is the next power of two."""
        needed = 2.0 ** torch.ceil(torch.log2(peak.clamp_min(1e-300)))
        reach = self.reach[seen]
        fresh = (reach == 0) & (peak > 0)
        # Only zeros were seen before: all of them are in the bin that begins at 0.
        reach[fresh] = needed[fresh]
        while bool((outside := reach < torch.where(peak > 0, needed, reach)).any()):
            pairs = self.counts[seen][outside].reshape(-1, BINS // 2, 2).sum(2)
            merged = torch.zeros(len(pairs), BINS, dtype=torch.float64)
            merged[:, BINS // 4 : 3 * BINS // 4] = pairs
            self.counts[seen][outside] = merged
            reach[outside] *= 2

    def bins(self) -> Tensor:
        """The middle of every bin, float64 ``[units, BINS]``; that of all-zero units is 0."""
        middle = (torch.arange(BINS, dtype=torch.float64) + 0.5) * (2 / BINS) - 1
        return self.reach[:, None] * middle

    def edges(self) -> Tensor:
        """Where bins begin and the last one ends, float64 ``[units, BINS + 1]``."""
        return self.reach[:, None] * (torch.arange(BINS + 1, dtype=torch.float64) * (2 / BINS) - 1)

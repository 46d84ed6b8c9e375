"""The range of a batch, averaged over batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from tersor import processes
from tersor.quantize.observers.registry import Granularity, Observer, register_observer


@register_observer
class MovingAverage(Observer):
    """The exponential moving average of the smallest and largest value of each input.

    What is rare is clipped. ``momentum`` is the part of the average that stays: 0.9, so that ten inputs or more count.

    The order of the inputs counts. Where several processes share the data, each keeps the ends of every input (two
    numbers a unit), so that :meth:`merge` can put all of them in the order of the batches.

    Source: Jacob et al., CVPR 2018 (arXiv 1712.05877), section 3.1.
    """

    name: ClassVar[str] = "moving_average"
    momentum: ClassVar[float] = 0.9

    def __init__(self, granularity: Granularity = "tensor", group_size: int | None = None) -> None:
        super().__init__(granularity, group_size)
        self.low, self.high = torch.zeros(0), torch.zeros(0)
        self.count = torch.zeros(0, dtype=torch.int64)
        self.kept: list[tuple[int, Tensor, Tensor]] = []

    def _grow(self, count: int) -> None:
        self.low, self.high = (torch.cat([t, torch.zeros(count)]) for t in (self.low, self.high))
        self.count = torch.cat([self.count, torch.zeros(count, dtype=torch.int64)])

    def _see(self, rows: Tensor) -> None:
        low, high = torch.aminmax(rows, dim=1)
        if self.keeps or processes.size() > 1:
            self.kept.append((processes.batch_number() or 0, low, high))
        self._average(low, high)

    def merge(self, others: Sequence[MovingAverage]) -> None:
        """As in Observer; exactly, whatever the number of others."""
        kept = sorted((one for other in others for one in other.kept), key=lambda one: one[0])
        for _, low, high in kept:
            self._make_room(len(low))
            self._average(low, high)

    def _merge(self, other: MovingAverage) -> None:
        self.merge([other])

    def _average(self, low: Tensor, high: Tensor) -> None:
        seen = slice(len(low))
        # The first inputs count the same: an average that starts at the first one would remember it for long.
        keep = (self.count[seen] / (self.count[seen] + 1)).clamp_max(self.momentum)
        self.low[seen] = keep * self.low[seen] + (1 - keep) * low.clamp_max(0)
        self.high[seen] = keep * self.high[seen] + (1 - keep) * high.clamp_min(0)
        self.count[seen] += 1

    def _choose(self, bits: int) -> tuple[Tensor, Tensor]:
        return self.low, self.high

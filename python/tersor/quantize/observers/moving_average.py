"""The range of a batch, averaged over batches."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tersor.quantize.observers.registry import Granularity, Observer, register_observer


@register_observer
class MovingAverage(Observer):
    """The exponential moving average of the smallest and largest value of each input.

    What is rare is clipped. ``momentum`` is the part of the average that stays: 0.9, so that ten inputs or more count.

    Source: Jacob et al., CVPR 2018 (arXiv 1712.05877), section 3.1.
    """

    name: ClassVar[str] = "moving_average"
    momentum: ClassVar[float] = 0.9

    def __init__(self, granularity: Granularity = "tensor", group_size: int | None = None) -> None:
        super().__init__(granularity, group_size)
        self.low, self.high = torch.zeros(0), torch.zeros(0)
        self.count = torch.zeros(0, dtype=torch.int64)

    def _grow(self, count: int) -> None:
        self.low, self.high = (torch.cat([t, torch.zeros(count)]) for t in (self.low, self.high))
        self.count = torch.cat([self.count, torch.zeros(count, dtype=torch.int64)])

    def _see(self, rows: Tensor) -> None:
        low, high = torch.aminmax(rows, dim=1)
        seen = slice(len(rows))
        # The first inputs count the same: an average that starts at the first one would remember it for long.
        keep = (self.count[seen] / (self.count[seen] + 1)).clamp_max(self.momentum)
        self.low[seen] = keep * self.low[seen] + (1 - keep) * low.clamp_max(0)
        self.high[seen] = keep * self.high[seen] + (1 - keep) * high.clamp_min(0)
        self.count[seen] += 1

    def _choose(self, bits: int) -> tuple[Tensor, Tensor]:
        return self.low, self.high

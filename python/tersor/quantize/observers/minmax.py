"""The smallest and largest value ever seen."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tersor.quantize.observers.registry import Granularity, Observer, register_observer


@register_observer
class MinMax(Observer):
    """The whole range: nothing is clipped, and one outlier makes the steps of all other values coarse."""

    name: ClassVar[str] = "minmax"

    def __init__(self, granularity: Granularity = "tensor", group_size: int | None = None) -> None:
        super().__init__(granularity, group_size)
        self.low, self.high = torch.zeros(0), torch.zeros(0)

    def _grow(self, count: int) -> None:
        self.low, self.high = (torch.cat([t, torch.zeros(count)]) for t in (self.low, self.high))

    def _see(self, rows: Tensor) -> None:
        self._reach(*torch.aminmax(rows, dim=1))

    def _merge(self, other: MinMax) -> None:
        self._reach(other.low, other.high)

    def _reach(self, low: Tensor, high: Tensor) -> None:
        seen = slice(len(low))
        self.low[seen] = torch.minimum(self.low[seen], low)
        self.high[seen] = torch.maximum(self.high[seen], high)

    def _choose(self, bits: int) -> tuple[Tensor, Tensor]:
        return self.low, self.high

"""A range that leaves out a small part of the values."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tersor.quantize.observers.histogram import BINS, HistogramObserver
from tersor.quantize.observers.registry import register_observer


@register_observer
class Percentile(HistogramObserver):
    """The range between the quantiles ``1 - part`` and ``part`` of the values, ``part`` being 0.9999.

    Taken from a histogram: the ends are edges of its bins, the outer ones.

    Source: McKinstry et al., 2018 (arXiv 1809.04191), section 3.2.
    """

    name: ClassVar[str] = "percentile"
    part: ClassVar[float] = 0.9999

    def _choose(self, bits: int) -> tuple[Tensor, Tensor]:
        below = self.counts.cumsum(1)  # [units, BINS], up to the end of each bin
        total = below[:, -1:]
        edges = self.edges()
        # The first bin up to whose end enough values lie, and the last one from whose beginning on they do.
        top = torch.searchsorted(below, total * self.part).clamp_max(BINS - 1)
        bottom = torch.searchsorted(below, total * (1 - self.part), right=True).clamp_max(BINS - 1)
        high, low = edges.gather(1, top + 1)[:, 0], edges.gather(1, bottom)[:, 0]
        return torch.maximum(low.float(), self.low), torch.minimum(high.float(), self.high)

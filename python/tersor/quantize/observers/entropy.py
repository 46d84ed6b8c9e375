"""The range that keeps the distribution of the values."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tersor.quantize.observers.histogram import BINS, HistogramObserver
from tersor.quantize.observers.registry import register_observer


@register_observer
class Entropy(HistogramObserver):
    """The threshold t for which the values clipped to [-t, t] lose the least information when they are quantised.

    P is the histogram within the range, what lies outside added to its last bins; Q is what the quantised values say
    about it: the counts within the range without the rest, equal over the filled bins of each of the 2^bits levels.
    The range with the smallest Kullback-Leibler divergence of Q from P is taken, of 128 thresholds.

    Source: Migacz, 8-bit inference with TensorRT, GTC 2017; extended to ranges with two different ends.
    """

    name: ClassVar[str] = "entropy"
    tries: ClassVar[int] = 128

    def _choose(self, bits: int) -> tuple[Tensor, Tensor]:
        chosen = [self._threshold(unit, bits) for unit in range(self.units)]
        t = torch.tensor(chosen, dtype=torch.float32)
        return torch.maximum(self.low, -t), torch.minimum(self.high, t)

    def _threshold(self, unit: int, bits: int) -> float:
        reach, counts = float(self.reach[unit]), self.counts[unit]
        peak = max(float(self.high[unit]), -float(self.low[unit]))
        if peak == 0:
            return 0.0
        first, last = (int(index) for index in counts.nonzero().flatten()[[0, -1]])
        half, levels, best, least = BINS // 2, 2**bits, peak, float("inf")
        most = max(last + 1 - half, half - first)
        for step in range(1, self.tries + 1):
            width = round(most * step / self.tries)  # bins of a half
            begin, end = max(first, half - width), min(last + 1, half + width)
            if end - begin < min(levels // 2, last + 1 - first):
                continue  # fewer bins than levels say nothing about quantising
            divergence = _divergence(counts, begin, end, levels)
            if divergence < least:
                least, best = divergence, width * 2 * reach / BINS
        return min(best, peak)


def _divergence(counts: Tensor, begin: int, end: int, levels: int) -> float:
    inside = counts[begin:end]
    p = inside.clone()
    p[0] += counts[:begin].sum()
    p[-1] += counts[end:].sum()
    level = (torch.arange(end - begin) * levels // (end - begin)).clamp_max(levels - 1)
    filled = (inside > 0).to(torch.float64)
    total, places = (torch.zeros(levels, dtype=torch.float64).index_add_(0, level, t) for t in (inside, filled))
    q = (total / places.clamp_min(1))[level] * filled
    p, q = p / p.sum(), q / q.sum().clamp_min(1e-300)
    some = p > 0
    # A bin that only holds what was clipped has no share in Q.
    return float((p[some] * (p[some] / q[some].clamp_min(1e-9)).log()).sum())

"""Weights whose contributions carry little information go."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tersor.errors import PruneError
from tersor.prune.criteria.registry import Criterion, Needs, Statistics, register_criterion
from tersor.prune.layers import PrunableLayer


class Histograms(Statistics):
    """One histogram per input, over all calibration tokens, in one pass.

    The range of an input is that of the first call that it is seen in; when a value falls outside, the bins are merged
    in pairs and the range doubles towards it, which loses no count. At least half of the bins then cover seen values,
    unless the first call was much wider than all others. Memory: ``8 * bins + 16`` bytes per input; time: a few
    operations per token and input, no sorting.
    """

    def __init__(self, layer: PrunableLayer, bins: int) -> None:
        self.bins = bins
        self.shape = (layer.groups, layer.shape[1])
        self.counts = torch.zeros(self.shape[0] * self.shape[1], bins, dtype=torch.int64, device=layer.weight.device)
        self.low = torch.zeros(len(self.counts), dtype=torch.float64, device=layer.weight.device)
        self.width = torch.zeros_like(self.low)

    def see_input(self, rows: Tensor) -> None:
        values = rows.transpose(1, 2).flatten(0, 1).to(self.low)  # [groups * in, tokens]
        if values.shape[1] == 0:
            return
        least, most = torch.aminmax(values, dim=1)
        if not bool(self.width.any()):
            self.low = least
            scale = torch.maximum(least.abs(), most.abs())
            self.width = torch.maximum((most - least) / self.bins, scale * 2.0**-40 + 1e-30) * (1 + 1e-9)
        self._grow(least, most)
        places = ((values - self.low[:, None]) / self.width[:, None]).long().clamp_(0, self.bins - 1)
        self.counts.scatter_add_(1, places, torch.ones_like(places))

    def _grow(self, least: Tensor, most: Tensor) -> None:
        while True:
            down = least < self.low
            up = ~down & (most > self.low + self.bins * self.width)
            if not bool((down | up).any()):
                return
            merged = self.counts[:, ::2] + self.counts[:, 1::2]
            empty = torch.zeros_like(merged)
            self.counts = torch.where(down[:, None], torch.cat([empty, merged], 1), self.counts)
            self.counts = torch.where(up[:, None], torch.cat([merged, empty], 1), self.counts)
            self.low = torch.where(down, self.low - self.bins * self.width, self.low)
            self.width = torch.where(down | up, 2 * self.width, self.width)

    def spread(self) -> Tensor:
        """``exp`` of the differential entropy of each input, ``[groups, in]``; 0 where one bin holds everything."""
        part = self.counts / self.counts.sum(dim=1, keepdim=True)
        entropy = torch.special.entr(part).sum(dim=1)  # nats
        spread = torch.where((self.counts > 0).sum(dim=1) > 1, entropy.exp() * self.width, 0.0)
        return spread.reshape(self.shape).to(torch.float32)


@register_criterion
class Entropy(Criterion):
    """Score ``exp(h(w_ij x_j)) = |w_ij| * exp(h(x_j))``: the effective spread of what a weight contributes.

    ``h`` is the differential entropy of the contribution over calibration tokens. It is estimated from a histogram
    with bins of width ``d``: ``h = -sum(p log p) + log d``, so for a uniform input ``exp(h)`` is the length of its
    range. An input that is constant carries no information, however large it is: its weights score zero (a bias could
    take its part). The groups of a pattern score the mean of their weights, so a 1x4 block is judged by the
    distributions of the four inputs that it reads.

    Args:
        bins: per input, a power of two.

    Raises:
        PruneError: ``bins`` is not a power of two from 2 to 4096.

    Source: Luo and Wu, An Entropy-based Pruning Method for CNN Compression, arXiv 1706.05791: the entropy of a
    channel's activation over calibration data, in ``bins`` bins, tells what it is worth. There it is discrete, scale
    free, and removes whole filters; here, for single weights and blocks, the scale has to count, hence ``log d``.
    """

    name: ClassVar[str] = "entropy"
    needs: ClassVar[Needs] = "inputs"

    def __init__(self, bins: int = 64) -> None:
        if not 2 <= bins <= 4096 or bins & (bins - 1):
            raise PruneError(f"entropy needs a power of two from 2 to 4096 as bins, got {bins}")
        self.bins = bins

    def statistics(self, layer: PrunableLayer) -> Histograms:
        return Histograms(layer, self.bins)

    def statistics_bytes(self, layer: PrunableLayer) -> int:
        return (8 * self.bins + 16) * layer.groups * layer.shape[1]

    def scores(self, layer: PrunableLayer, statistics: Statistics) -> Tensor:
        assert isinstance(statistics, Histograms)
        return layer.matrix().abs_().mul_(layer.per_row(statistics.spread()))

"""Weights whose removal, by the diagonal of the Fisher matrix, changes the loss least."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from tersor.prune.criteria.registry import Criterion, Needs, Statistics, register_criterion
from tersor.prune.layers import PrunableLayer


class SquaredGradientMean(Statistics):
    """The mean squared gradient over batches. Memory: one float32 per weight."""

    divides: ClassVar[bool] = True

    def __init__(self, layer: PrunableLayer) -> None:
        self.total = torch.zeros(layer.shape, device=layer.weight.device)
        self.batches = 0

    def see_gradient(self, gradient: Tensor, weight: Tensor) -> None:
        self.total.addcmul_(gradient, gradient)
        self.batches += 1

    def join(self, total: Callable[[Tensor], Tensor]) -> None:
        self.total, self.batches = total(self.total), int(total(torch.tensor(self.batches)))


@register_criterion
class Fisher(Criterion):
    """Score ``w^2 F / 2`` with ``F`` the mean over batches of the squared gradient of the batch's loss.

    It is the diagonal of the empirical Fisher matrix where a batch holds one sample; with larger batches gradients
    cancel within a batch and ``F`` comes out smaller. Small batches are better and cost more backward passes.

    Source: LeCun et al., Optimal Brain Damage, NIPS 1989 (the saliency ``h w^2 / 2``); Theis et al., Faster Gaze
    Prediction with Dense Networks and Fisher Pruning, arXiv 1801.05787 (squared gradients in the place of ``h``).
    """

    name: ClassVar[str] = "fisher"
    needs: ClassVar[Needs] = "gradients"

    def statistics(self, layer: PrunableLayer) -> SquaredGradientMean:
        return SquaredGradientMean(layer)

    def statistics_bytes(self, layer: PrunableLayer) -> int:
        return 4 * layer.weight.numel()

    def scores(self, layer: PrunableLayer, statistics: Statistics) -> Tensor:
        assert isinstance(statistics, SquaredGradientMean)
        return layer.matrix().square_().mul_(statistics.total).mul_(0.5 / statistics.batches)

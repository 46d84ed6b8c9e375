"""Weights whose removal, to first order, changes the loss least."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tersor.errors import PruneError
from tersor.prune.criteria.registry import Criterion, Needs, Statistics, register_criterion
from tersor.prune.layers import PrunableLayer


class GradientMean(Statistics):
    """The mean gradient over batches. Memory: one float32 per weight."""

    divides: ClassVar[bool] = True

    def __init__(self, layer: PrunableLayer) -> None:
        self.total = torch.zeros(layer.shape, device=layer.weight.device)
        self.batches = 0

    def see_gradient(self, gradient: Tensor, weight: Tensor) -> None:
        self.total += gradient
        self.batches += 1

    def join(self, total: Callable[[Tensor], Tensor]) -> None:
        self.total, self.batches = total(self.total), int(total(torch.tensor(self.batches)))


@register_criterion
class Gradient(Criterion):
    """With ``g`` the mean gradient of the loss over the calibration batches:

    Args:
        mode: ``"taylor"``: score ``|w g|``, the first-order change of the loss when ``w`` becomes zero;
            ``"gradient"``: score ``|g|``: weights with small gradients go.

    Raises:
        PruneError: another mode.

    Source: Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, arXiv 1611.06440,
    equation 6, taken per weight; plain ``|g|`` is its factor that does not look at the weight.
    """

    name: ClassVar[str] = "gradient"
    needs: ClassVar[Needs] = "gradients"

    def __init__(self, mode: Literal["taylor", "gradient"] = "taylor") -> None:
        if mode not in ("taylor", "gradient"):
            raise PruneError(f"gradient mode {mode!r}; known: taylor, gradient")
        self.mode = mode

    def statistics(self, layer: PrunableLayer) -> GradientMean:
        return GradientMean(layer)

    def statistics_bytes(self, layer: PrunableLayer) -> int:
        return 4 * layer.weight.numel()

    def scores(self, layer: PrunableLayer, statistics: Statistics) -> Tensor:
        assert isinstance(statistics, GradientMean)
        mean = statistics.total / statistics.batches
        return (mean * layer.matrix() if self.mode == "taylor" else mean).abs()

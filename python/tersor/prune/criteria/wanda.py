"""Small weights on quiet inputs go."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from tersor.prune.criteria.registry import Criterion, Needs, Scope, Statistics, register_criterion
from tersor.prune.layers import PrunableLayer


class InputEnergy(Statistics):
    """The sum of squares of every input. Memory: 8 bytes per input."""

    divides: ClassVar[bool] = True

    def __init__(self, layer: PrunableLayer) -> None:
        self.squares = torch.zeros(layer.groups, layer.shape[1], dtype=torch.float64, device=layer.weight.device)

    def see_input(self, rows: Tensor) -> None:
        self.squares += rows.square().sum(dim=1, dtype=torch.float64).to(self.squares.device)

    def join(self, total: Callable[[Tensor], Tensor]) -> None:
        self.squares = total(self.squares)


@register_criterion
class Wanda(Criterion):
    """Score ``|w_ij| * |x_j|_2`` with the norm of input ``j`` over all calibration tokens; compared within each row.

    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models, arXiv 2306.11695.
    """

    name: ClassVar[str] = "wanda"
    needs: ClassVar[Needs] = "inputs"
    scope: ClassVar[Scope] = "row"

    def statistics(self, layer: PrunableLayer) -> InputEnergy:
        return InputEnergy(layer)

    def statistics_bytes(self, layer: PrunableLayer) -> int:
        return 8 * layer.groups * layer.shape[1]

    def scores(self, layer: PrunableLayer, statistics: Statistics) -> Tensor:
        assert isinstance(statistics, InputEnergy)
        return layer.matrix().abs_().mul_(layer.per_row(statistics.squares.sqrt().to(torch.float32)))

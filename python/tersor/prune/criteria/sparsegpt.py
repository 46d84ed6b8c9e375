"""Second order: weights go where the others can make up for them, and the others do."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from tersor.errors import PruneError
from tersor.prune.criteria.registry import Criterion, Needs, Statistics, register_criterion
from tersor.prune.layers import PrunableLayer
from tersor.prune.masks import drop_all, drop_lowest, quota
from tersor.prune.patterns import NofM, Pattern
from tersor.second_order import inverse_factor


class InputGram(Statistics):
    """The mean of ``x x^T`` over calibration tokens, ``[groups, in, in]``. Memory: 4 bytes per pair of inputs."""

    divides: ClassVar[bool] = True

    def __init__(self, layer: PrunableLayer) -> None:
        inputs = layer.shape[1]
        self.gram = torch.zeros(layer.groups, inputs, inputs, device=layer.weight.device)
        self.tokens = 0

    def see_input(self, rows: Tensor) -> None:
        tokens = rows.shape[1]
        if tokens == 0:
            return
        self.tokens += tokens
        rows = rows.to(self.gram.device)
        self.gram.baddbmm_(rows.mT, rows, beta=1 - tokens / self.tokens, alpha=1 / self.tokens)

    def join(self, total: Callable[[Tensor], Tensor]) -> None:
        tokens = int(total(torch.tensor(self.tokens)))
        self.gram = total(self.gram * (self.tokens / max(tokens, 1)))
        self.tokens = tokens


@register_criterion
class SparseGPT(Criterion):
    """Solves ``min |W' X - W X|`` under the pattern by optimal brain surgery, column by column.

    With ``H = X X^T + damping * mean(diag) * I`` and ``U`` the upper Cholesky factor of its inverse, a weight costs
    ``w^2 / U_jj^2``. In blocks of columns the cheapest groups are chosen; then, from left to right, each removed
    weight's error ``w / U_jj`` is spread over the columns right of it with row ``j`` of ``U``. Layers are pruned in
    order, and those that share one calibration pass see the inputs before it.

    Args:
        block: columns per choice (for N:M: M) and per delayed update of the rest.
        damping: part of the mean diagonal added to the diagonal; raised tenfold as long as ``H`` can't be factorised.

    Raises:
        PruneError: ``block < 1`` or ``damping <= 0``.

    Memory: per layer the matrix of ``in^2`` float32, while solving three of float64 beside it. Layers that were solved
    before an error stay changed.
    Source: Frantar and Alistarh, SparseGPT, arXiv 2301.00774, algorithm 1.
    """

    name: ClassVar[str] = "sparsegpt"
    needs: ClassVar[Needs] = "inputs"
    updates: ClassVar[bool] = True

    def __init__(self, block: int = 128, damping: float = 0.01) -> None:
        if block < 1 or not damping > 0:
            raise PruneError(f"sparsegpt needs block >= 1 and damping > 0, got {block} and {damping}")
        self.block, self.damping = block, damping

    def statistics(self, layer: PrunableLayer) -> InputGram:
        return InputGram(layer)

    def statistics_bytes(self, layer: PrunableLayer) -> int:
        return 4 * layer.groups * layer.shape[1] ** 2

    def scores(self, layer: PrunableLayer, statistics: Statistics) -> Tensor:
        """``w^2 / U_jj^2``, before any weight has changed."""
        assert isinstance(statistics, InputGram)
        costs = torch.stack([self._factor(gram, layer.name).diagonal() for gram in statistics.gram])
        return layer.matrix().div_(layer.per_row(costs)).square_()

    def solve(
        self, layer: PrunableLayer, statistics: Statistics, pattern: Pattern, count: int, held: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(statistics, InputGram)
        weight, stays = layer.matrix(), torch.ones_like(held)
        rows = len(weight) // layer.groups
        if layer.groups > 1 and rows % pattern.rows:
            raise PruneError(f"{layer.name}: {pattern} blocks reach over convolution groups of {rows} outputs")
        taken = 0
        for group, gram in enumerate(statistics.gram):
            part = slice(group * rows, (group + 1) * rows)
            later = held[part.stop :]
            room = pattern.limit((len(later), held.shape[1]))
            target = quota(count, taken, (group + 1) / layer.groups, int((~later).sum()), room)
            factor = self._factor(gram, layer.name)
            stays[part] = eliminate(weight[part], factor, pattern, target, held[part], self.block)
            taken += int((~stays[part]).sum())
        return stays, weight

    def _factor(self, gram: Tensor, name: str) -> Tensor:
        try:
            return inverse_factor(gram, self.damping)
        except ValueError as error:
            raise PruneError(f"{name}: {error}") from error


def eliminate(weight: Tensor, factor: Tensor, pattern: Pattern, count: int, held: Tensor, block: int) -> Tensor:
    """Zero ``count`` weights of a matrix ``[out, in]`` and let the others make up for them, in place.

    Args:
        factor: upper Cholesky factor of the inverse second moments, ``[in, in]``.
        held: bool ``[out, in]``, False where a weight is removed already.
        block: columns per choice and per delayed update, rounded up to the pattern's columns.

    Returns:
        Which weights stay, bool ``[out, in]``.
    """
    columns = weight.shape[1]
    block += -block % pattern.cols
    choice = pattern.cols if isinstance(pattern, NofM) else block
    stays = torch.ones_like(held)
    limit = pattern.limit((weight.shape[0], columns))
    later_gone = [*(~held).sum(0).flip(0).cumsum(0).flip(0).tolist(), 0]  # by column: removed earlier, from there on
    taken = possible = 0
    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        errors = torch.zeros_like(weight[:, begin:end])
        for j in range(begin, end):
            if (j - begin) % choice == 0:
                part = slice(j, min(j + choice, end))
                scores = (weight[:, part] / factor.diagonal()[part]).square_()
                possible += pattern.limit((scores.shape[0], scores.shape[1]))
                if count >= limit:
                    stays[:, part] = drop_all(pattern, scores, held[:, part])
                else:
                    target = quota(count, taken, possible / limit, later_gone[part.stop], limit - possible)
                    stays[:, part] = drop_lowest(pattern, scores, target, held[:, part])
                    taken += int((~stays[:, part]).sum())
            error = torch.where(stays[:, j], 0.0, weight[:, j] / factor[j, j])
            weight[:, j:end] -= error[:, None] * factor[j, j:end]
            weight[:, j] = torch.where(stays[:, j], weight[:, j], 0.0)
            errors[:, j - begin] = error
        weight[:, end:] -= errors @ factor[begin:end, end:]
    return stays

"""One removal: scores, and the masks that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tersor.errors import PruneError
from tersor.prune.calibration import Calibration, gather
from tersor.prune.criteria import Criterion
from tersor.prune.criteria.registry import Scope
from tersor.prune.layers import PrunableLayer
from tersor.prune.masks import drop_global, drop_in_rows, drop_lowest
from tersor.prune.patterns import Pattern
from tersor.training import sharding

Masks = dict[str, Tensor]
"""By the layer's name: which weights stay, bool ``[out, in]``."""


def choose(
    model: nn.Module,
    layers: Sequence[PrunableLayer],
    criterion: Criterion,
    pattern: Pattern,
    scope: Scope,
    counts: Mapping[str, int],
    held: Mapping[str, Tensor],
    data: Calibration | None,
    alone: frozenset[str] = frozenset(),
) -> Masks:
    """Choose the weights that stay. Weights are changed only by a criterion with ``updates``.

    Args:
        counts: by layer: how many weights are zero afterwards. With the scope ``"global"`` only their sum counts,
            over all layers that are not in ``alone``.
        held: by layer: the masks of the removal before.
        alone: layers that keep their own count under the scope ``"global"``.

    Raises:
        PruneError: see :func:`tersor.prune.calibration.gather`; or a score is NaN.
    """
    layers = [layer for layer in layers if counts[layer.name] or layer.name not in alone]
    masks = dict(held)
    scores: dict[str, Tensor] = {}
    for portion in gather(model, layers, criterion, data):
        for layer, statistics in portion:
            name = layer.name
            if criterion.updates:
                masks[name], matrix = criterion.solve(layer, statistics, pattern, counts[name], held[name])
                layer.write(matrix)
                continue
            score = criterion.scores(layer, statistics)
            if bool(torch.isnan(score).any()):
                raise PruneError(f"{name}: its {criterion.name} scores hold NaN; is its weight finite?")
            scores[name] = score
    if scope == "global":
        pool = [name for name in scores if name not in alone]
        if pool:
            total = sum(counts[name] for name in pool)
            found = drop_global(pattern, [scores[name] for name in pool], total, [held[name] for name in pool])
            masks.update(zip(pool, found, strict=True))
        scores = {name: score for name, score in scores.items() if name in alone}
    drop = drop_in_rows if scope == "row" else drop_lowest
    for name, score in scores.items():
        masks[name] = drop(pattern, score, counts[name], held[name])
    return masks


def count_of(layer: PrunableLayer, pattern: Pattern, sparsity: float, part: float = 1.0) -> int:
    """How many weights of a layer are zero at a part of its final sparsity."""
    if pattern.sparsity is not None and sparsity > 0:
        return round(part * pattern.limit(layer.shape))
    return round(part * sparsity * layer.weight.numel())


@torch.no_grad()
def zero(layer: PrunableLayer, mask: Tensor) -> None:
    """Set the weights that don't stay to plus zero."""
    weight = layer.weight
    own = sharding.local(weight)
    own.masked_fill_(~sharding.part_of(layer.from_matrix(mask), weight).to(own.device), 0.0)

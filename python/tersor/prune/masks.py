"""Which weights stay: the groups with the lowest scores go, to an exact count, ties to the first in the matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tersor.prune.patterns import Pattern


def drop_lowest(pattern: Pattern, scores: Tensor, count: int, held: Tensor) -> Tensor:
    """Remove the groups of one matrix with the lowest scores.

    Args:
        scores: ``[out, in]``.
        count: weights to remove, met to the nearest group (never more than half a group off).
        held: bool ``[out, in]``, False where a weight was removed earlier; these count and stay removed.

    Returns:
        Which weights stay, bool ``[out, in]``.
    """
    return drop_global(pattern, [scores], count, [held])[0]


def drop_global(pattern: Pattern, scores: Sequence[Tensor], count: int, held: Sequence[Tensor]) -> list[Tensor]:
    """The same over several matrices at once: scores of all of them are compared."""
    grids = [_grid(pattern, score, stay) for score, stay in zip(scores, held, strict=True)]
    device = grids[0][0].device
    values = torch.cat([groups.flatten().to(device) for groups, _ in grids])
    sizes = torch.cat([size.flatten().to(device) for _, size in grids])
    order = values.sort(stable=True).indices
    number = _prefix(values[order], sizes[order].cumsum(0), count)
    stays = torch.ones(len(values), dtype=torch.bool, device=device)
    stays[order[:number]] = False
    parts = torch.split(stays, [groups.numel() for groups, _ in grids])
    return [_expand(pattern, part, grid, score) for part, (grid, _), score in zip(parts, grids, scores, strict=True)]


def drop_in_rows(pattern: Pattern, scores: Tensor, count: int, held: Tensor) -> Tensor:
    """The same where scores are compared within each row of groups only. Every row loses the same, to one group;
    what rounding to groups leaves over is carried to the next row, so the matrix's own count is exact too."""
    groups, sizes = _grid(pattern, scores, held)
    values, order = groups.sort(dim=1, stable=True)
    ends = sizes.gather(1, order).cumsum(1)
    weights, gone = sizes.sum(dim=1).tolist(), (sizes * (groups == -math.inf)).sum(dim=1).tolist()
    room = (sizes * (groups < math.inf)).sum(dim=1).tolist()
    stays = torch.ones_like(groups, dtype=torch.bool)
    values, ends, total = values.cpu(), ends.cpu(), sum(weights)
    taken = before = 0
    later_gone, later_room = sum(gone), sum(room)
    for row, size in enumerate(weights):
        before += size
        later_gone -= gone[row]
        later_room -= room[row]
        due = quota(count, taken, before / total, later_gone, later_room)
        number = _prefix(values[row], ends[row], due)
        stays[row, order[row, :number]] = False
        taken += int(ends[row, number - 1]) if number else 0
    return _expand(pattern, stays, groups, scores)


def quota(count: int, taken: int, part: float, later_gone: int, later_possible: int) -> int:
    """How many weights a part of a matrix loses so that the whole matrix loses ``count``.

    Args:
        taken: removed in the parts before.
        part: the share of the matrix up to the end of this part.
        later_gone: weights in the parts to come that were removed earlier.
        later_possible: weights in the parts to come that can be removed.
    """
    rest = count - taken
    return max(min(round(count * part) - taken, rest - later_gone), rest - later_possible)


def _grid(pattern: Pattern, scores: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
    return pattern.groups(scores.masked_fill(~held, -math.inf))


def _prefix(values: Tensor, ends: Tensor, count: int) -> int:
    """How many of the sorted groups go: those removed earlier always, those that can't be removed never."""
    number = int(torch.searchsorted(ends, count, right=True))  # the groups that fit into the count
    if number < len(ends):
        below = int(ends[number - 1]) if number else 0
        number += int(ends[number]) - count < count - below
    earlier, possible = int((values == -math.inf).sum()), int((values < math.inf).sum())
    return min(max(number, earlier), possible)


def _expand(pattern: Pattern, stays: Tensor, grid: Tensor, scores: Tensor) -> Tensor:
    wide = pattern.expand(stays.reshape(grid.shape), (scores.shape[0], scores.shape[1]))
    return wide.to(scores.device)

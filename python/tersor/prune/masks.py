"""Which weights stay: the groups with the lowest scores go, to an exact count, ties to the first in the matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
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


def drop_all(pattern: Pattern, scores: Tensor, held: Tensor) -> Tensor:
    """:func:`drop_lowest` with the highest count that the pattern allows, without waiting for the scores' device."""
    groups, _ = _grid(pattern, scores, held)
    return _expand(pattern, groups == math.inf, groups, scores)


def drop_global(pattern: Pattern, scores: Sequence[Tensor], count: int, held: Sequence[Tensor]) -> list[Tensor]:
    """The same over several matrices at once: scores of all of them are compared."""
    grids = [_grid(pattern, score, stay) for score, stay in zip(scores, held, strict=True)]
    device = grids[0][0].device
    values = torch.cat([groups.flatten().to(device) for groups, _ in grids])
    sizes = torch.cat([size.flatten().to(device) for _, size in grids])
    order = values.sort(stable=True).indices
    earlier, possible = int((values == -math.inf).sum()), int((values < math.inf).sum())
    number = _prefix(sizes[order].cumsum(0).cpu().numpy(), count, earlier, possible)
    stays = torch.ones(len(values), dtype=torch.bool, device=device)
    stays[order[:number]] = False
    parts = torch.split(stays, [groups.numel() for groups, _ in grids])
    return [_expand(pattern, part, grid, score) for part, (grid, _), score in zip(parts, grids, scores, strict=True)]


def drop_in_rows(pattern: Pattern, scores: Tensor, count: int, held: Tensor) -> Tensor:
    """The same where scores are compared within each row of groups only. Every row loses the same, to one group;
    what rounding to groups leaves over is carried to the next row, so the matrix's own count is exact too."""
    groups, sizes = _grid(pattern, scores, held)
    order = groups.sort(dim=1, stable=True).indices
    ends = sizes.gather(1, order).cumsum(1).cpu().numpy()
    weights, gone = sizes.sum(dim=1).tolist(), (sizes * (groups == -math.inf)).sum(dim=1).tolist()
    room = (sizes * (groups < math.inf)).sum(dim=1).tolist()
    earlier, possible = (groups == -math.inf).sum(dim=1).tolist(), (groups < math.inf).sum(dim=1).tolist()
    numbers, total = [], sum(weights)
    taken = before = 0
    later_gone, later_room = sum(gone), sum(room)
    for row, size in enumerate(weights):  # each row's count depends on the rows before it: no device is asked in here
        before += size
        later_gone -= gone[row]
        later_room -= room[row]
        due = quota(count, taken, before / total, later_gone, later_room)
        number = _prefix(ends[row], due, earlier[row], possible[row])
        numbers.append(number)
        taken += int(ends[row, number - 1]) if number else 0
    places = torch.arange(groups.shape[1], device=groups.device)
    stays = places >= torch.tensor(numbers, device=groups.device)[:, None]
    stays = torch.ones_like(groups, dtype=torch.bool).scatter_(1, order, stays)
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


def _prefix(ends: NDArray[np.int64], count: int, earlier: int, possible: int) -> int:
    """How many of the sorted groups go: those removed earlier always, those that can't be removed never."""
    number = int(np.searchsorted(ends, count, side="right"))  # the groups that fit into the count
    if number < len(ends):
        below = int(ends[number - 1]) if number else 0
        number += int(ends[number]) - count < count - below
    return min(max(number, earlier), possible)


def _expand(pattern: Pattern, stays: Tensor, grid: Tensor, scores: Tensor) -> Tensor:
    wide = pattern.expand(stays.reshape(grid.shape), (scores.shape[0], scores.shape[1]))
    return wide.to(scores.device)

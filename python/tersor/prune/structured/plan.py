"""Which units go: a part of every group, of all groups together, or as many as a target asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tersor.errors import PruneError
from tersor.prune.layers import matches
from tersor.prune.structured.groups import Group
from tersor.prune.structured.indices import Ids

Scored = Sequence[tuple[Group, NDArray[np.float64]]]

_STEPS = 24  # of the search for a ratio


def choose(
    scored: Scored, ratio: float, overrides: Mapping[str, float], round_to: int, *, together: bool, most: float
) -> Ids:
    """The units to remove, those of the lowest scores.

    Args:
        ratio: the part of the units to remove.
        overrides: wildcard on layer names -> the ratio of their groups; the first match counts.
        round_to: what is left of a layer's outputs is a multiple of it where the layer has that many.
        together: one ranking over all groups, so that each loses what it can spare; else each loses its part.
        most: no group loses a larger part.
    """
    own = [_override(group, overrides) for group, _ in scored]
    counts = [
        len(group.units) * (ratio if part is None else part) for (group, _), part in zip(scored, own, strict=True)
    ]
    if together:
        free = [place for place, part in enumerate(own) if part is None]
        for place, count in zip(free, _rank([scored[place] for place in free], ratio), strict=True):
            counts[place] = count
    removed: list[Ids] = [np.zeros(0, dtype=np.int64)]
    for (group, scores), count in zip(scored, counts, strict=True):
        number = _rounded(group, min(count, most * len(group.units)), round_to)
        removed.append(group.units[np.argsort(scores, kind="stable")[:number]])
    return np.concatenate(removed)


def search(measure: Callable[[float], float], target: float, most: float) -> float:
    """The smallest ratio whose measure (1 at ratio 0, falling) is at most ``target``.

    Raises:
        PruneError: even ``most`` does not reach the target.
    """
    if measure(most) > target:
        raise PruneError(f"the target {target} can't be reached: {measure(most):.3f} is left at a ratio of {most}")
    low, high = 0.0, most
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if measure(middle) <= target else (middle, high)
        if high - low < 1e-3:
            break
    return high


def _override(group: Group, overrides: Mapping[str, float]) -> float | None:
    wildcard = matches(group.layers, overrides)
    return None if wildcard is None else overrides[wildcard]


def _rank(scored: Scored, ratio: float) -> list[float]:
    """How many units each group loses when the lowest of all go. A head counts like a channel."""
    if not scored:
        return []
    scores = np.concatenate([values for _, values in scored])
    owner = np.concatenate([np.full(len(values), place) for place, (_, values) in enumerate(scored)])
    gone = owner[np.argsort(scores, kind="stable")[: round(ratio * len(scores))]]
    return [float((gone == place).sum()) for place in range(len(scored))]


def _rounded(group: Group, count: float, round_to: int) -> int:
    """So many units that what is left is a multiple of ``round_to`` outputs: the nearest, and never nothing."""
    step = round_to // math.gcd(round_to, group.width)
    units = len(group.units)
    if step >= units:
        step = 1 if units * group.width < round_to else units
    left = max(1, math.floor((units - count) / step + 0.5)) * step
    return max(0, units - left)

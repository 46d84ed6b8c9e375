"""How many singular values stay: by energy, by parameters, by error, or as given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["rank", "energy", "ratio", "error"]

ROUND_TO = 32
"""Ranks are multiples of this, which every kernel's tile divides."""


@dataclass(frozen=True)
class RankRule:
    """What decides on the rank of a layer.

    Attributes:
        kind: ``"rank"``: ``value`` is the rank itself, or below 1 the part of the full rank; ``"energy"``: the least
            rank that keeps this part of the sum of squared singular values; ``"ratio"``: the largest rank with this
            part of the parameters; ``"error"``: the least rank whose relative error (square root of the energy lost)
            is at most this. With a weighted SVD, energy and error are those of the layer's outputs.
        value: see ``kind``.
        round_to: ranks are rounded to a multiple of it, up where a quality is asked for and down where a size is.

    Raises:
        ValueError: the value does not fit the kind.
    """

    kind: Kind = "ratio"
    value: float = 0.5
    round_to: int = ROUND_TO

    def __post_init__(self) -> None:
        whole = self.kind == "rank" and self.value >= 1
        if not (math.isfinite(self.value) and (0 < self.value < 1 or (whole and self.value == int(self.value)))):
            allowed = "a whole number or a part above 0 and below 1" if self.kind == "rank" else "above 0 and below 1"
            raise ValueError(f"{self.kind}: expected {allowed}, got {self.value!r}")
        if type(self.round_to) is not int or self.round_to < 1:
            raise ValueError(f"round_to: expected a positive whole number, got {self.round_to!r}")

    def choose(self, s: Tensor, parameters_per_rank: float, parameters: int) -> int:
        """The rank for singular values ``s``, largest first, from 1 to their number.

        Args:
            parameters_per_rank: weights that one more rank costs.
            parameters: of the layer as it is.
        """
        full = len(s)
        if self.kind == "ratio":
            wanted, up = self.value * parameters / parameters_per_rank, False
        elif self.kind == "rank":
            wanted, up = (self.value * full if self.value < 1 else self.value), False
        else:
            lost = (self.value**2 if self.kind == "error" else 1 - self.value) * float(s.square().sum())
            tail = s.square().flip(0).cumsum(0).flip(0)  # what a cut before each of them loses
            wanted, up = float(int((tail > lost).sum())), True
        if self.kind == "rank" and self.value >= 1:
            return max(1, min(full, int(wanted)))  # as given
        units = math.ceil(wanted / self.round_to) if up else math.floor(wanted / self.round_to)
        return max(1, min(full, max(units, 1) * self.round_to))


def lost_error(s: Tensor, rank: int) -> float:
    """The relative error of a cut after ``rank``: the square root of the part of the energy that is lost."""
    total = float(s.square().sum())
    return math.sqrt(max(float(s[rank:].square().sum()), 0.0) / total) if total > 0 else 0.0


def break_even(n: int, k: int) -> int:
    """The largest rank at which the factors of an [n, k] weight have fewer values than it."""
    return (n * k - 1) // (n + k)


def spectrum(weight: Tensor) -> Tensor:
    """The singular values of a matrix, largest first, float64."""
    values: Tensor = torch.linalg.svdvals(weight.detach().double())
    return values

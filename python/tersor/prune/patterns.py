"""Which weights leave together: single ones, blocks, or N of every M."""

from __future__ import annotations

import abc
import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tersor.errors import PruneError


class Pattern(abc.ABC):
    """A grid of groups over a matrix ``[out, in]``. A group is kept or removed as a whole.

    Attributes:
        rows, cols: the extent of a group's neighbourhood; a matrix may be cut at multiples of them.
        sparsity: the part of the weights that the pattern itself removes; None where it is free.
    """

    rows: int = 1
    cols: int = 1
    sparsity: float | None = None

    @abc.abstractmethod
    def groups(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``[out, in]`` to scores per group and weights per group, both ``[group rows, group columns]``.

        The score of a group is the mean of its weights' scores. Plus infinity marks a group that can't be removed.
        """

    @abc.abstractmethod
    def expand(self, groups: Tensor, shape: tuple[int, int]) -> Tensor:
        """One value per group to one per weight: ``[out, in]``."""

    def limit(self, shape: tuple[int, int]) -> int:
        """The most weights that can be removed from a matrix of this shape."""
        return shape[0] * shape[1]


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Every weight for itself."""

    def groups(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        return scores, torch.ones_like(scores, dtype=torch.int64)

    def expand(self, groups: Tensor, shape: tuple[int, int]) -> Tensor:
        return groups

    def __str__(self) -> str:
        return "unstructured"


@dataclass(frozen=True)
class Blocks(Pattern):
    """Blocks of ``rows`` outputs x ``cols`` inputs. Blocks at the right and lower edge may be smaller.

    Raises:
        PruneError: a size below one.
    """

    rows: int = 1
    cols: int = 4

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise PruneError(f"a block needs at least one row and one column, got {self}")

    def groups(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        sizes = self._sums(torch.ones_like(scores))
        return self._sums(scores) / sizes, sizes.to(torch.int64)

    def _sums(self, values: Tensor) -> Tensor:
        out, columns = values.shape
        padded = functional.pad(values, (0, -columns % self.cols, 0, -out % self.rows))
        tiles = padded.reshape(-1, self.rows, padded.shape[1] // self.cols, self.cols)
        return tiles.sum(dim=(1, 3))

    def expand(self, groups: Tensor, shape: tuple[int, int]) -> Tensor:
        wide = groups.repeat_interleave(self.rows, dim=0).repeat_interleave(self.cols, dim=1)
        return wide[: shape[0], : shape[1]]

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"


@dataclass(frozen=True)
class NofM(Pattern):
    """At most ``n`` of every ``m`` neighbouring inputs stay. Of ``t`` inputs left over at the right edge,
    ``floor(t * (m - n) / m)`` can go.

    Raises:
        PruneError: not ``0 < n < m``.

    Source: Mishra et al., Accelerating Sparse Deep Neural Networks, arXiv 2104.08378.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise PruneError(f"an N:M pattern needs 0 < N < M, got {self}")
        object.__setattr__(self, "cols", self.m)
        object.__setattr__(self, "sparsity", 1 - self.n / self.m)

    def groups(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        columns = scores.shape[1]
        tail = columns % self.m
        padded = functional.pad(scores, (0, -columns % self.m), value=math.inf)
        grouped = padded.reshape(len(scores), -1, self.m)
        order = grouped.sort(dim=2, stable=True).indices
        ranks = order.argsort(dim=2)
        free = torch.full((grouped.shape[1],), self.m - self.n, device=scores.device)
        if tail:
            free[-1] = self._tail(tail)
        held = grouped.masked_fill(ranks >= free[:, None], math.inf)
        return held.flatten(1)[:, :columns], torch.ones_like(scores, dtype=torch.int64)

    def _tail(self, columns: int) -> int:
        return columns * (self.m - self.n) // self.m

    def expand(self, groups: Tensor, shape: tuple[int, int]) -> Tensor:
        return groups

    def limit(self, shape: tuple[int, int]) -> int:
        whole, tail = divmod(shape[1], self.m)
        return shape[0] * (whole * (self.m - self.n) + self._tail(tail))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


def parse_pattern(pattern: str | Pattern) -> Pattern:
    """``"unstructured"``, ``"1x4"`` (rows x columns) or ``"2:4"`` (N of M stay) as a pattern; a pattern as itself.

    Raises:
        PruneError: anything else.
    """
    if isinstance(pattern, Pattern):
        return pattern
    if pattern == "unstructured":
        return Unstructured()
    if found := re.fullmatch(r"(\d{1,4})x(\d{1,4})", pattern):
        return Blocks(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"(\d{1,4}):(\d{1,4})", pattern):
        return NofM(int(found[1]), int(found[2]))
    raise PruneError(f"unknown pattern {pattern!r}; known: 'unstructured', blocks such as '1x4', N:M such as '2:4'")

"""What a criterion is, and the list of all of them. A new one is one file here and one import line in the package."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar, Literal, TypeVar

from torch import Tensor

from tersor.errors import PruneError
from tersor.prune.layers import PrunableLayer
from tersor.prune.patterns import Pattern

Needs = Literal["nothing", "inputs", "gradients"]
Scope = Literal["row", "layer", "global"]


class Statistics:
    """What a criterion keeps about one layer while calibration data runs through the model.

    Attributes:
        divides: several processes can each see a share of the batches, and :meth:`join` afterwards. Where it is False,
            every process sees all of them.
    """

    divides: ClassVar[bool] = False

    def join(self, total: Callable[[Tensor], Tensor]) -> None:
        """Become the statistics of what all processes saw; ``total`` sums a tensor over them."""

    def see_input(self, rows: Tensor) -> None:
        """The layer was called: its input as float32 ``[groups, tokens, in]``."""

    def see_gradient(self, gradient: Tensor, weight: Tensor) -> None:
        """The loss of one batch was differentiated: both float32 ``[out, in]``."""


class Criterion(abc.ABC):
    """Decides which weights matter. Weights with the lowest scores are removed.

    Attributes:
        name: its name in the registry.
        needs: what it looks at besides the weights; anything but ``"nothing"`` needs calibration data,
            ``"gradients"`` a loss too.
        scope: among which weights its scores are compared by default: one row of the matrix, one layer, or all layers.
        updates: the criterion also changes the weights that stay (see :meth:`solve`).
    """

    name: ClassVar[str] = ""
    needs: ClassVar[Needs] = "nothing"
    scope: ClassVar[Scope] = "layer"
    updates: ClassVar[bool] = False

    def statistics(self, layer: PrunableLayer) -> Statistics:
        """Empty statistics for a layer."""
        return Statistics()

    def statistics_bytes(self, layer: PrunableLayer) -> int:
        """The memory that the statistics of a layer take."""
        return 0

    @abc.abstractmethod
    def scores(self, layer: PrunableLayer, statistics: Statistics) -> Tensor:
        """The importance of every weight: float32 ``[out, in]``, finite, zero or more."""

    def solve(
        self, layer: PrunableLayer, statistics: Statistics, pattern: Pattern, count: int, held: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Choose and adapt at once, for criteria with ``updates``.

        Args:
            count: how many weights of the matrix are zero afterwards, to the nearest group.
            held: bool ``[out, in]``, False where a weight was removed earlier and stays removed.

        Returns:
            Which weights stay, bool ``[out, in]``, and the new matrix, float32 ``[out, in]``.
        """
        raise NotImplementedError(f"{self.name} does not change the weights that stay")


CRITERIA: dict[str, type[Criterion]] = {}
"""Every known criterion by its name."""

CriterionT = TypeVar("CriterionT", bound=type[Criterion])


def register_criterion(cls: CriterionT) -> CriterionT:
    """Class decorator that makes a criterion known by its name.

    Raises:
        ValueError: no name, or it belongs to another class.
    """
    if not cls.name:
        raise ValueError(f"{cls.__qualname__} has no name")
    owner = CRITERIA.setdefault(cls.name, cls)
    if owner is not cls:
        raise ValueError(f"criterion {cls.name!r} belongs to {owner.__module__}.{owner.__qualname__} already")
    return cls


def make_criterion(criterion: str | Criterion) -> Criterion:
    """A criterion by its name with its default settings, or as it is.

    Raises:
        PruneError: an unknown name; the message lists what exists.
    """
    if isinstance(criterion, Criterion):
        return criterion
    if criterion not in CRITERIA:
        raise PruneError(f"unknown criterion {criterion!r}; known: {', '.join(sorted(CRITERIA))}")
    return CRITERIA[criterion]()

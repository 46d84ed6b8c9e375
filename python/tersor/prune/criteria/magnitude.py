"""Small weights go."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from tersor.prune.criteria.registry import Criterion, Statistics, register_criterion
from tersor.prune.layers import PrunableLayer


@register_criterion
class Magnitude(Criterion):
    """Score ``|w|``. Source: Han et al., Learning both Weights and Connections, arXiv 1506.02626."""

    name: ClassVar[str] = "magnitude"

    def scores(self, layer: PrunableLayer, statistics: Statistics) -> Tensor:
        return layer.matrix().abs_()

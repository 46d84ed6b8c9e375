"""The yardstick: weights go by lot."""

from __future__ import annotations

import zlib
from typing import ClassVar

import torch
from torch import Tensor

from tersor.prune.criteria.registry import Criterion, Statistics, register_criterion
from tersor.prune.layers import PrunableLayer


@register_criterion
class Random(Criterion):
    """Uniform scores, the same at every call for one seed, layer name and shape.

    Args:
        seed: of the lot; torch's own random state is neither used nor changed.
    """

    name: ClassVar[str] = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def scores(self, layer: PrunableLayer, statistics: Statistics) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 0x1_0000_0001 + zlib.crc32(layer.name.encode()))
        return torch.rand(layer.shape, generator=generator).to(layer.weight.device)

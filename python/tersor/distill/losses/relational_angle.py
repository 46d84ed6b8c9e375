"""The angles that the examples of a batch make."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from tersor.distill.losses.registry import FeatureLoss, Given, register_loss
from tersor.distill.losses.shapes import examples


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class RelationalAngle(FeatureLoss):
    """The Huber loss of the cosines of the angles in all triples of examples. Memory: the cube of the batch size."""

    name: ClassVar[str] = "relational_angle"
    source: ClassVar[str] = "Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068"
    compares: ClassVar[Literal["positions", "places", "examples"]] = "examples"

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        ours, theirs = (_angles(examples(feature, given.mask)) for feature in (student, teacher))
        return functional.smooth_l1_loss(ours, theirs)


def _angles(x: Tensor) -> Tensor:
    lines = functional.normalize(x[None] - x[:, None], dim=2)  # [corner, end, features]
    return lines @ lines.transpose(1, 2)  # [corner, end, other end]

"""How far the examples of a batch are apart."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from tersor.distill.losses.registry import FeatureLoss, Given, register_loss
from tersor.distill.losses.shapes import examples


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class RelationalDistance(FeatureLoss):
    """The Huber loss of the distances of all pairs of examples, each model's divided by their mean."""

    name: ClassVar[str] = "relational_distance"
    source: ClassVar[str] = "Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068"
    compares: ClassVar[Literal["positions", "places", "examples"]] = "examples"

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        ours, theirs = (_distances(examples(feature, given.mask)) for feature in (student, teacher))
        return functional.smooth_l1_loss(ours, theirs)


def _distances(x: Tensor) -> Tensor:
    one, other = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
    apart = (x[one] - x[other]).square().sum(dim=1).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    return apart / apart.mean().clamp_min(torch.finfo(x.dtype).eps)

"""Hints: the student's features say, through a learnt map, what the teacher's are."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from tersor.distill.losses.registry import FeatureLoss, Given, register_loss
from tersor.distill.losses.shapes import pooled, rows


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class Hint(FeatureLoss):
    """The mean squared error of the student's projected features. The projection is always learnt."""

    name: ClassVar[str] = "hint"
    source: ClassVar[str] = "Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv 1412.6550"
    projection: ClassVar[Literal["never", "differ", "always"]] = "always"

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        student, teacher = pooled(student, teacher)
        return functional.mse_loss(rows(student, given.mask), rows(teacher, given.mask))

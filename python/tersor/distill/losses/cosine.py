"""Directions of embeddings."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from tersor.distill.losses.registry import FeatureLoss, Given, register_loss
from tersor.distill.losses.shapes import pooled, rows


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(FeatureLoss):
    """One minus the cosine of the features at each position, mean over positions."""

    name: ClassVar[str] = "cosine"
    source: ClassVar[str] = "Sanh et al., DistilBERT, arXiv 1910.01108"
    projection: ClassVar[Literal["never", "differ", "always"]] = "differ"

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        student, teacher = pooled(student, teacher)
        return 1.0 - functional.cosine_similarity(rows(student, given.mask), rows(teacher, given.mask), dim=-1).mean()

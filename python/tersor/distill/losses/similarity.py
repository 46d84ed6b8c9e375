"""Which examples of a batch are alike."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from tersor.distill.losses.registry import FeatureLoss, Given, register_loss
from tersor.distill.losses.shapes import examples


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarityPreserving(FeatureLoss):
    """The squared difference of the matrices of inner products of all examples, rows normalised, mean over rows.

    The paper divides by the batch size once more; without that the loss doesn't shrink with the batch.
    """

    name: ClassVar[str] = "similarity"
    source: ClassVar[str] = "Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv 1907.09682"
    compares: ClassVar[Literal["positions", "places", "examples"]] = "examples"

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        ours, theirs = (_similar(examples(feature, given.mask)) for feature in (student, teacher))
        return (ours - theirs).square().sum(dim=1).mean()


def _similar(x: Tensor) -> Tensor:
    return functional.normalize(x @ x.T, dim=1)

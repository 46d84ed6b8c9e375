"""Hidden states of a transformer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tersor.distill.losses.registry import FeatureLoss, Given, register_loss
from tersor.distill.losses.shapes import pooled, rows


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class Hidden(FeatureLoss):
    """The mean squared error of hidden states relative to the teacher's variance, so that layers of any scale weigh the
    same; tokens outside the attention mask don't count. TinyBERT leaves the division out."""

    name: ClassVar[str] = "hidden"
    source: ClassVar[str] = "Jiao et al., TinyBERT, Findings of EMNLP 2020, arXiv 1909.10351"
    projection: ClassVar[Literal["never", "differ", "always"]] = "differ"

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        student, teacher = pooled(student, teacher)
        ours, theirs = rows(student, given.mask), rows(teacher, given.mask)
        spread = theirs.var(correction=0).clamp_min(torch.finfo(torch.float32).eps)
        return (ours - theirs).square().mean() / spread

"""Outputs of any kind, relative to their size."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from tersor.distill.losses.registry import Given, OutputLoss, register_loss
from tersor.distill.losses.shapes import rows


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class Match(OutputLoss):
    """``|student - teacher|^2 / |teacher|^2`` over all rows: the squared relative error, whatever the output is."""

    name: ClassVar[str] = "match"
    source: ClassVar[str] = (
        "Ba and Caruana, Do Deep Nets Really Need to be Deep?, arXiv 1312.6184, with relative errors"
    )

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        ours, theirs = rows(student, given.mask), rows(teacher, given.mask)
        size = theirs.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
        return (ours - theirs).square().sum() / size

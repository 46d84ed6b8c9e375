"""Logits themselves."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from tersor.distill.losses.registry import Given, OutputLoss, register_loss
from tersor.distill.losses.shapes import rows


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitsMSE(OutputLoss):
    """The mean squared difference of the logits, or of any other output."""

    name: ClassVar[str] = "logits_mse"
    source: ClassVar[str] = "Ba and Caruana, Do Deep Nets Really Need to be Deep?, arXiv 1312.6184"

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        return functional.mse_loss(rows(student, given.mask), rows(teacher, given.mask))

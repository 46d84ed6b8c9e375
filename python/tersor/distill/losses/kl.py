"""Soft labels: the teacher's class probabilities at a temperature."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from tersor.distill.losses.registry import Given, OutputLoss, register_loss
from tersor.distill.losses.shapes import rows


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class KL(OutputLoss):
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, mean over rows.

    Args:
        temperature: T; high ones show how the teacher ranks the wrong classes.
    """

    name: ClassVar[str] = "kl"
    source: ClassVar[str] = "Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531"

    temperature: float = 4.0

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        ours = functional.log_softmax(rows(student, given.mask) / self.temperature, dim=-1)
        theirs = functional.log_softmax(rows(teacher, given.mask) / self.temperature, dim=-1)
        return functional.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.temperature**2

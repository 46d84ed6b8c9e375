"""The task itself."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from tersor.distill.losses.registry import Given, OutputLoss, register_loss
from tersor.errors import DistillError


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class Label(OutputLoss):
    """The loss that the student returns itself, where it returns one; else the cross-entropy of its logits
    [batch, classes] (or [batch, tokens, classes], tokens labelled -100 left out) and the labels."""

    name: ClassVar[str] = "label"
    source: ClassVar[str] = "Hinton et al., Distilling the Knowledge in a Neural Network, arXiv 1503.02531"

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        if given.own is not None:
            return given.own
        labels = given.labels
        if not isinstance(labels, Tensor):
            raise DistillError(
                'the loss "label" needs labels: say where batches have them, labels="labels" or labels=1'
            )
        if labels.is_floating_point():
            return functional.cross_entropy(student.to(labels.dtype), labels)
        return functional.cross_entropy(student.flatten(0, -2), labels.flatten())

"""Soft labels in two parts: how sure the teacher is of the right class, and how it ranks the others."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tersor.distill.losses.registry import Given, OutputLoss, register_loss
from tersor.distill.losses.shapes import rows
from tersor.errors import DistillError


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoupledKD(OutputLoss):
    """``T^2 * (alpha * KL(right class or not) + beta * KL(among the other classes))``, mean over rows.

    The right class is the label where the batch has labels, else the teacher's first choice.

    Args:
        temperature: T.
        alpha, beta: weights of the two parts.
    """

    name: ClassVar[str] = "dkd"
    source: ClassVar[str] = "Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, arXiv 2203.08679"

    temperature: float = 4.0
    alpha: float = 1.0
    beta: float = 8.0

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        ours, theirs = rows(student, given.mask), rows(teacher, given.mask)  # [n, classes]
        right = theirs.argmax(dim=-1)
        if isinstance(given.labels, Tensor) and not given.labels.is_floating_point():
            labels = given.labels
            if given.mask is not None and labels.shape == given.mask.shape and student.dim() == 3:
                labels = labels[given.mask]
            if labels.numel() != len(ours):
                raise DistillError(f"dkd: {labels.numel()} labels for {len(ours)} rows of logits")
            right = labels.flatten()
        first = functional.one_hot(right, ours.shape[-1]).bool()
        return (self.alpha * self._target(ours, theirs, first) + self.beta * self._others(ours, theirs, first)) * (
            self.temperature**2
        )

    def _target(self, ours: Tensor, theirs: Tensor, first: Tensor) -> Tensor:
        def both(logits: Tensor) -> Tensor:
            logs = functional.log_softmax(logits / self.temperature, dim=-1)
            rest = torch.logsumexp(logs.masked_fill(first, -torch.inf), dim=-1)
            return torch.stack([logs[first], rest], dim=-1)  # [n, 2] log probabilities

        return functional.kl_div(both(ours), both(theirs), reduction="batchmean", log_target=True)

    def _others(self, ours: Tensor, theirs: Tensor, first: Tensor) -> Tensor:
        shape = (len(ours), ours.shape[-1] - 1)
        one, other = (
            functional.log_softmax(logits[~first].reshape(shape) / self.temperature, dim=-1)
            for logits in (ours, theirs)
        )
        return functional.kl_div(one, other, reduction="batchmean", log_target=True)

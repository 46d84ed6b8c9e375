"""Which examples are neighbours, as probabilities."""

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
class PKT(FeatureLoss):
    """The KL divergence of the conditional probabilities that examples are neighbours, from ``(1 + cosine) / 2`` of
    each with the others; mean over examples."""

    name: ClassVar[str] = "pkt"
    source: ClassVar[str] = "Passalis and Tefas, Probabilistic Knowledge Transfer, ECCV 2018, arXiv 1803.10837"
    compares: ClassVar[Literal["positions", "places", "examples"]] = "examples"

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        ours, theirs = (_neighbours(examples(feature, given.mask)) for feature in (student, teacher))
        return functional.kl_div(ours.log(), theirs.log(), reduction="batchmean", log_target=True)


def _neighbours(x: Tensor) -> Tensor:
    unit = functional.normalize(x, dim=1)
    alike = ((unit @ unit.T + 1) / 2).clamp_min(1e-7)
    alike = alike.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 1e-7)
    return alike / alike.sum(dim=1, keepdim=True)

"""Where a network looks: the energy of its activations at every place."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from tersor.distill.losses.registry import FeatureLoss, Given, register_loss
from tersor.distill.losses.shapes import pooled, positions


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionTransfer(FeatureLoss):
    """The squared distance of normalised maps of ``sum over channels of x^2``, summed over places, mean over examples.

    The paper's mean over places makes it tiny; the sum lets a weight near 1 do.
    """

    name: ClassVar[str] = "attention_transfer"
    source: ClassVar[str] = "Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928"
    compares: ClassVar[Literal["positions", "places", "examples"]] = "places"

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        student, teacher = pooled(student, teacher)
        ours, theirs = (_map(feature, given.mask) for feature in (student, teacher))
        return (ours - theirs).square().sum(dim=1).mean()


def _map(feature: Tensor, mask: Tensor | None) -> Tensor:
    energy = positions(feature).square().sum(dim=2)  # [batch, places]
    if mask is not None and feature.dim() == 3 and energy.shape == mask.shape:
        energy = energy * mask
    return functional.normalize(energy, dim=1)

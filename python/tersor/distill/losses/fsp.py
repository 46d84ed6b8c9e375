"""How features flow from one layer to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from tersor.distill.losses.registry import FeatureLoss, Given, register_loss
from tersor.distill.losses.shapes import pooled, positions


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class FSP(FeatureLoss):
    """The mean squared difference of the flow matrices ``x^T y / places`` of consecutive layers ``x``, ``y`` of the
    list, relative to the teacher's mean square. A larger map is averaged down to the smaller one."""

    name: ClassVar[str] = "fsp"
    source: ClassVar[str] = "Yim et al., A Gift from Knowledge Distillation, CVPR 2017"
    projection: ClassVar[Literal["never", "differ", "always"]] = "differ"
    least: ClassVar[int] = 2

    def total(self, student: Sequence[Tensor], teacher: Sequence[Tensor], given: Given) -> Tensor:
        values = []
        for index in range(len(student) - 1):
            ours, theirs = (_flow(side[index], side[index + 1], given.mask) for side in (student, teacher))
            values.append(self.value(ours, theirs, given))
        return torch.stack(values).mean()

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        size = teacher.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
        return functional.mse_loss(student, teacher) / size


def _flow(one: Tensor, other: Tensor, mask: Tensor | None) -> Tensor:
    one, other = (positions(feature) for feature in pooled(one, other))  # [batch, places, channels] each
    if mask is not None and one.shape[:2] == mask.shape:
        one = one * mask[..., None]
    return one.transpose(1, 2) @ other / one.shape[1]

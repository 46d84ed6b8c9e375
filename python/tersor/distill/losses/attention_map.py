"""The attention maps of a transformer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from tersor.distill.losses.registry import FeatureLoss, Given, register_loss


@register_loss
@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionMap(FeatureLoss):
    """The squared difference of attention weights [batch, heads, tokens, tokens], summed over a row, mean over rows of
    tokens that count. Where the numbers of heads differ, the means over heads are compared.

    The layers have to return their maps: load a Hugging Face model with ``attn_implementation="eager"``.
    """

    name: ClassVar[str] = "attention_map"
    source: ClassVar[str] = "Jiao et al., TinyBERT, Findings of EMNLP 2020, arXiv 1909.10351"
    compares: ClassVar[Literal["positions", "places", "examples"]] = "places"

    def pick(self, output: Any) -> Tensor | None:
        parts = list(output.values()) if isinstance(output, Mapping) else output
        for part in parts if isinstance(parts, list | tuple) else [parts]:
            if isinstance(part, Tensor) and part.dim() == 4 and part.shape[2] == part.shape[3]:
                return part if part.is_floating_point() else None
        return None

    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        if student.shape[1] != teacher.shape[1]:
            student, teacher = student.mean(dim=1, keepdim=True), teacher.mean(dim=1, keepdim=True)
        errors = (student.float() - teacher.float()).square().sum(dim=3).mean(dim=1)  # [batch, tokens]
        if given.mask is not None and errors.shape == given.mask.shape:
            return errors[given.mask].mean()
        return errors.mean()

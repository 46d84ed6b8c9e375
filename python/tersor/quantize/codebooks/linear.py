"""Equal steps, symmetric."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tersor.quantize.codebooks.codes import LIMIT
from tersor.quantize.codebooks.registry import CodeBook, register_codebook


@register_codebook
class Linear(CodeBook):
    """The integers ``-2^(bits - 1) .. 2^(bits - 1) - 1``; with 8 bits -127 stands in for -128.

    The scale is the one with the least squared error, as in OMSE (Choukroun et al., 2019, arXiv 1902.06822).
    """

    name: ClassVar[str] = "linear"

    def table(self, weight: Tensor, bits: int, group_size: int, importance: Tensor | None) -> Tensor:
        half = 2 ** (bits - 1)
        return torch.arange(-half, half, dtype=torch.int16).clamp_min(-LIMIT).to(torch.int8)

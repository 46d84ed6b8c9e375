"""Batches of random inputs, the same every time."""

from __future__ import annotations

import torch
from torch import Tensor


def batches(*shape: int, count: int = 3) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=random) for _ in range(count)]


def images(count: int = 2) -> list[Tensor]:
    return batches(8, 3, 14, 12, count=count)

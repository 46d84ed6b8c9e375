"""The optimiser that steps train with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from tersor.training.loop import MakeOptimizer


def adamw(learning_rate: float) -> MakeOptimizer:
    """AdamW without weight decay; its fused form where the parameters are plain ones on the CPU."""

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        trained = list(parameters)
        plain = all(type(one) is nn.Parameter and one.device.type == "cpu" for one in trained)
        fused = True if plain and all(one.is_floating_point() for one in trained) else None
        return torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0, fused=fused)

    return make

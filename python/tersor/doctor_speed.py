"""One int8 layer against float, for the doctor: quick, and checked for its result."""

from __future__ import annotations

import torch
from torch import nn

from tersor.benchmark import interleave
from tersor.nn import Int8Linear


def measure(rows: int = 128) -> tuple[int, float, float, float]:
    """Time a layer 384 -> 1536 both ways.

    Returns:
        rows, microseconds of the fastest turns of float and of int8, and the relative error (2-norms) of int8.
    """
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(384, 1536)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 384**0.5)
    x = torch.randn((rows, 384), generator=generator)
    fast = Int8Linear.from_float(layer)
    with torch.inference_mode():
        expected, got = layer(x), fast(x)
        laps = interleave({"float": lambda: layer(x), "int8": lambda: fast(x)}, rounds=9, turn_seconds=3e-3)
        error = float((got - expected).norm() / expected.norm())
    return rows, min(laps["float"].seconds) * 1e6, min(laps["int8"].seconds) * 1e6, error

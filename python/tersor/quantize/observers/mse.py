"""The range in which quantised values are closest to the values."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tersor.quantize.observers.histogram import HistogramObserver
from tersor.quantize.observers.registry import quantization, register_observer


@register_observer
class MSE(HistogramObserver):
    """The range with the least mean squared error, of clipping and rounding together.

    Both ends are shrunk together first, then each by itself, in steps of 1/32 of the whole range.
    """

    name: ClassVar[str] = "mse"
    steps: ClassVar[int] = 32

    def _choose(self, bits: int) -> tuple[Tensor, Tensor]:
        parts = [step / self.steps for step in range(1, self.steps + 1)]
        best_low, best_high = self.low, self.high
        least = self._error(best_low, best_high, bits)
        for tries in (
            [(self.low * part, self.high * part) for part in parts],
            [(self.low * part, None) for part in parts],
            [(None, self.high * part) for part in parts],
        ):
            base_low, base_high = best_low, best_high
            for one, other in tries:
                low, high = base_low if one is None else one, base_high if other is None else other
                error = self._error(low, high, bits)
                better = error < least
                best_low, best_high = torch.where(better, low, best_low), torch.where(better, high, best_high)
                least = torch.where(better, error, least)
        return best_low, best_high

    def _error(self, low: Tensor, high: Tensor, bits: int) -> Tensor:
        """The squared error of all values, float64 ``[units]``."""
        scale, zero = quantization(low, high, bits)
        x, s, z = self.bins(), scale[:, None].to(torch.float64), zero[:, None]
        q = (x / s).round_().clamp_(-z, 2**bits - 1 - z)
        return (q * s - x).square_().mul_(self.counts).sum(1)

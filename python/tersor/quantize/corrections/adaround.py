"""Learning for every weight whether it is rounded up or down."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from tersor.quantize.codebooks import Codes
from tersor.quantize.codebooks.codes import expand_scale, values
from tersor.quantize.corrections.registry import Correction, LayerProblem, Solution, register_correction

_LOW, _HIGH = -0.1, 1.1


@register_correction
class AdaRound(Correction):
    """Gradient descent on ``tr(D H D^T)``, D the error of the weight, over soft choices between two entries.

    A weight between the entries ``lo`` and ``hi`` of its table becomes ``lo + h (hi - lo)`` with
    ``h = clip(1.2 sigmoid(v) - 0.1, 0, 1)``, and ``1 - |2h - 1|^beta`` pulls h to 0 or 1, the more the lower beta:
    20 falling to 2 in the last four fifths of the iterations. Adam; the second moments H stand for all rows that were
    seen, so nothing is sampled.

    Args:
        iterations: each costs two products ``[out, in] x [in, in]``.

    Source: Nagel et al., Up or down?, ICML 2020 (arXiv 2004.10568), section 3.3.
    """

    name: ClassVar[str] = "adaround"
    stage: ClassVar = "weights"

    def __init__(self, iterations: int = 300, learning_rate: float = 0.05, pull: float = 10.0) -> None:
        self.iterations, self.learning_rate, self.pull = iterations, learning_rate, pull

    def apply(self, problem: LayerProblem, solution: Solution) -> Solution:
        weight, gram = problem.scaled(solution.input_scale)
        return replace(solution, codes=self.round(weight, solution.codes, gram))

    def round(self, weight: Tensor, codes: Codes, gram: Tensor) -> Codes:
        """New codes for a weight ``[out, in]`` under the table and scales of ``codes``."""
        scale = expand_scale(codes.scale, weight.shape[1], codes.group_size)
        down, up = _neighbours(weight / scale, codes)
        low, high = (values(code, codes.table, codes.group_size).float() * scale for code in (down, up))
        step = high - low
        part = ((weight - low) / step.clamp_min(torch.finfo(torch.float32).tiny)).clamp(0.01, 0.99)
        v = torch.logit((part - _LOW) / (_HIGH - _LOW))
        # In units of the error that rounding to the nearest makes, so that one pull fits all layers.
        nearest = torch.where(part > 0.5, high, low) - weight
        norm = float(((nearest @ gram) * nearest).sum(dtype=torch.float64)) / weight.numel()
        if norm <= 0:
            return codes
        v = self._descend(v, weight, low, step, gram / norm)
        return replace(codes, codes=torch.where(v > 0, up, down))

    def _descend(self, v: Tensor, weight: Tensor, low: Tensor, step: Tensor, gram: Tensor) -> Tensor:
        first, second = torch.zeros_like(v), torch.zeros_like(v)
        for index in range(self.iterations):
            sigmoid = v.sigmoid()
            h = (sigmoid * (_HIGH - _LOW) + _LOW).clamp(0, 1)
            slope = sigmoid * (1 - sigmoid) * (_HIGH - _LOW) * ((h > 0) & (h < 1))
            gradient = 2 * ((low + h * step - weight) @ gram) * step
            progress = (index / self.iterations - 0.2) / 0.8
            if progress > 0:
                beta = 20 - 18 * progress
                away = 2 * h - 1
                gradient -= self.pull * 2 * beta * away.sign() * away.abs() ** (beta - 1)
            gradient *= slope
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.001)
            count = index + 1
            v -= self.learning_rate * (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
        return v


def _neighbours(units: Tensor, codes: Codes) -> tuple[Tensor, Tensor]:
    """The codes of the entries at or below and above each value, different ones, in units of the scale."""
    table = codes.table.to(torch.float32)
    if table.dim() == 3:
        groups = torch.split(units, codes.group_size, dim=1)
        parts = [torch.searchsorted(table[:, g].contiguous(), part.contiguous()) for g, part in enumerate(groups)]
        place = torch.cat(parts, 1)
    elif table.dim() == 2:
        place = torch.searchsorted(table.contiguous(), units.contiguous())
    else:
        place = torch.bucketize(units, table)
    # Repeated entries are at the end of a table or stand for the first of them, which bucketize finds.
    last = _last_distinct(codes, units.shape[1])
    place = torch.minimum(place.clamp_min(1), last)
    return (place - 1).to(torch.uint8), place.to(torch.uint8)


def _last_distinct(codes: Codes, columns: int) -> Tensor:
    """The first code of the largest entry, for every weight or as one number."""
    table = codes.table
    first = (table == table[..., -1:]).to(torch.int8).argmax(-1)  # [], [out] or [out, groups]
    if table.dim() == 1:
        return first
    return first[:, None] if table.dim() == 2 else first.repeat_interleave(codes.group_size, 1)[:, :columns]

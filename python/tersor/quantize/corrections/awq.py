"""Weights that meet large inputs are made larger before they are rounded."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from tersor.quantize.corrections.registry import Correction, LayerProblem, Solution, register_correction
from tersor.quantize.smoothing import LARGEST_RATIO, SMALLEST_SCALE


@register_correction
class AWQ(Correction):
    """An input scale ``c = rms(x)^-a`` per channel, with the ``a`` of 0, 0.1 .. 1 with the smallest error.

    The layer multiplies its input by c, and the weight that is rounded is ``W / c``. Each ``a`` is judged by the error
    of the layer's whole output, activations included; the input scale that is there already is kept if it is better.

    Source: Lin et al., AWQ, 2023 (arXiv 2306.00978), section 3.2; the paper takes the mean of ``|x|`` for the root
    mean square here, and searches for clipping as well, which the scales of code books always do.
    """

    name: ClassVar[str] = "awq"
    stage: ClassVar = "inputs"
    exponents: ClassVar[tuple[float, ...]] = tuple(step / 10 for step in range(11))

    def apply(self, problem: LayerProblem, solution: Solution) -> Solution:
        best, least = solution, problem.error(solution)
        for exponent in self.exponents:
            tried = replace(problem.fit(channel_scale(problem.moments.gram, exponent)), bias=None)
            error = problem.error(tried)
            if error < least:
                best, least = tried, error
        return best


def channel_scale(gram: Tensor, exponent: float) -> Tensor | None:
    """``rms(x)^-exponent``, within a factor of 100 of its median, the largest 1; None for exponent 0."""
    rms = gram.diagonal().clamp_min(0).double().sqrt()
    if exponent == 0 or not bool((rms > 0).any()):
        return None
    middle = rms[rms > 0].median()
    c = torch.where(rms > 0, (rms / middle).clamp_min(1e-9) ** -exponent, torch.ones_like(rms))
    c = c.clamp(1 / LARGEST_RATIO, LARGEST_RATIO)
    return (c / c.max()).to(torch.float32).clamp(SMALLEST_SCALE, 1)

"""Large input channels made smaller, as much as helps the layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from tersor.quantize.corrections.registry import Correction, LayerProblem, Solution, register_correction
from tersor.quantize.smoothing import SMALLEST_SCALE, input_scale

JUDGED_ROWS = 64
"""Of a weight, evenly spaced, or a few more: those that input scales are compared on."""


@register_correction
class Smoothing(Correction):
    """An input scale of one of two forms, the one with the smallest error of the layer's output.

    That of tersor.quantize.smoothing with ``a`` = 0.2, 0.35, 0.5, 0.65, 0.8; and one that only lowers the peaks of the
    largest channels to that of the 2nd, 4th, 8th .. largest. The second serves layers behind a GELU, where a few
    channels have rare large values and the others should stay as they are. The input scale that is there already is
    kept if it is better.

    Source: Xiao et al., SmoothQuant, 2022 (arXiv 2211.10438), equation 4; one ``a`` per layer, and the second form, are
    additions.
    """

    name: ClassVar[str] = "smoothing"
    stage: ClassVar = "inputs"
    alphas: ClassVar[tuple[float, ...]] = (0.2, 0.35, 0.5, 0.65, 0.8)

    def apply(self, problem: LayerProblem, solution: Solution) -> Solution:
        judged = replace(problem, weight=problem.weight[:: max(len(problem.weight) // JUDGED_ROWS, 1)])
        errors = [(judged.error(judged.fit(scale)), scale) for scale in self._scales(problem)]
        if not errors:
            return solution
        tried = problem.fit(min(errors, key=lambda one: one[0])[1])
        return tried if problem.error(tried) < problem.error(solution) else solution

    def _scales(self, problem: LayerProblem) -> Iterator[Tensor]:
        x_peak = problem.moments.channels.peak()
        weight_peak = problem.weight.abs().amax(0)
        for alpha in self.alphas:
            yield input_scale(weight_peak, x_peak, alpha)
        yield from lowered_peaks(x_peak)


def lowered_peaks(peak: Tensor) -> Iterator[Tensor]:
    """Scales ``[channels]`` that lower all peaks to the 2nd largest, the 4th, and so on up to the middle one."""
    ordered = peak.sort(descending=True).values
    rank = 2
    while rank <= max(len(peak) // 2, 2) <= len(peak):
        target = ordered[rank - 1]
        if 0 < float(target) < float(ordered[0]):
            yield (target / peak.clamp_min(torch.finfo(torch.float32).tiny)).clamp(SMALLEST_SCALE, 1)
        rank *= 2

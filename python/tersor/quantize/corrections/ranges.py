"""A static range chosen by what it does to the layer's output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from tersor.quantize.corrections.registry import Correction, LayerProblem, Solution, register_correction


@register_correction
class Range(Correction):
    """Parts of the whole range of a static input, the one with the smallest error of the layer's output.

    Both ends are moved in together first, then each by itself, in steps of a tenth. An observer weighs the errors of
    all input values the same; here they count as much as the weights that they meet make of them. It does nothing for
    dynamic inputs.

    Source: the search is that of the ``mse`` observer, the measure that of Nagel et al., A white paper on neural
    network quantization, 2021 (arXiv 2106.08295), section 3.1, for the layer's output in place of its input.
    """

    name: ClassVar[str] = "range"
    stage: ClassVar = "ranges"
    parts: ClassVar[tuple[float, ...]] = tuple(step / 10 for step in range(3, 10))

    def apply(self, problem: LayerProblem, solution: Solution) -> Solution:
        scale, zero = problem.range_of(solution)
        if scale == 0:
            return solution
        low, high = -zero * scale, (255 - zero) * scale
        best, least = (1.0, 1.0), problem.inputs_error(solution)
        for axis in range(3):
            for ends in _ends(best, axis, self.parts):
                tried = replace(solution, x_range=_quantization(low * ends[0], high * ends[1]))
                error = problem.inputs_error(tried)
                if error < least:
                    best, least, solution = ends, error, tried
        return solution


def _ends(best: tuple[float, float], axis: int, parts: tuple[float, ...]) -> Iterator[tuple[float, float]]:
    """The parts of low and high that are tried: both together, then each beside the best of the other."""
    low, high = best
    for part in parts:
        yield (part, part) if axis == 0 else (part, high) if axis == 1 else (low, part)


def _quantization(low: float, high: float) -> tuple[float, int]:
    scale = (high - low) / 255
    return scale, min(255, max(0, round(-low / scale)))

"""The mean of the error, taken back by the bias."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from tersor.quantize.corrections.registry import Correction, LayerProblem, Solution, register_correction


@register_correction
class BiasCorrection(Correction):
    """Subtracts the mean error of the outputs from the bias: ``(W' - W) E[x]``, and what static ranges add to it.

    Source: Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019 (arXiv
    1906.04721), section 4.2, with the mean of calibration data.
    """

    name: ClassVar[str] = "bias"
    stage: ClassVar = "bias"

    def apply(self, problem: LayerProblem, solution: Solution) -> Solution:
        return replace(solution, bias=-problem.mean_error(solution))

"""Corrections of a layer's quantisation, one file each. ``CORRECTIONS`` has them by name."""

from tersor.quantize.corrections.adaround import AdaRound
from tersor.quantize.corrections.awq import AWQ
from tersor.quantize.corrections.bias import BiasCorrection
from tersor.quantize.corrections.gptq import GPTQ
from tersor.quantize.corrections.ranges import Range
from tersor.quantize.corrections.registry import (
    CORRECTIONS,
    Correction,
    LayerProblem,
    Solution,
    Solved,
    make_correction,
    register_correction,
    solve,
)
from tersor.quantize.corrections.smoothing import Smoothing

__all__ = [
    "AWQ",
    "CORRECTIONS",
    "GPTQ",
    "AdaRound",
    "BiasCorrection",
    "Correction",
    "LayerProblem",
    "Range",
    "Smoothing",
    "Solution",
    "Solved",
    "make_correction",
    "register_correction",
    "solve",
]

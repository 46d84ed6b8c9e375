"""Observers, one file each: which range an input is quantised in. ``OBSERVERS`` has them by name."""

from tersor.quantize.observers.entropy import Entropy
from tersor.quantize.observers.minmax import MinMax
from tersor.quantize.observers.moving_average import MovingAverage
from tersor.quantize.observers.mse import MSE
from tersor.quantize.observers.percentile import Percentile
from tersor.quantize.observers.registry import (
    OBSERVERS,
    Granularity,
    Observer,
    make_observer,
    merged,
    quantization,
    register_observer,
)

__all__ = [
    "MSE",
    "OBSERVERS",
    "Entropy",
    "Granularity",
    "MinMax",
    "MovingAverage",
    "Observer",
    "Percentile",
    "make_observer",
    "merged",
    "quantization",
    "register_observer",
]

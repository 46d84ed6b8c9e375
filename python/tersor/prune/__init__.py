"""Pruning in plain PyTorch: criteria, patterns, schedules, and a pruner for one's own training loop.

It leaves true zeros in the model's own weights. By itself that makes the model neither smaller nor faster: the step
`tersor.steps.Prune` also replaces the layers that gain by it with sparse ones.
"""

from tersor.prune.calibration import Calibration
from tersor.prune.criteria import (
    CRITERIA,
    Criterion,
    Entropy,
    Fisher,
    Gradient,
    Magnitude,
    Random,
    SparseGPT,
    Statistics,
    Wanda,
    register_criterion,
)
from tersor.prune.fit import fit
from tersor.prune.layers import PrunableLayer, find_layers
from tersor.prune.patterns import Blocks, NofM, Pattern, Unstructured, parse_pattern
from tersor.prune.pruner import PrunedLayer, Pruner, PruneResult
from tersor.prune.schedules import SCHEDULES, Cubic, Linear, OneShot, Schedule, register_schedule
from tersor.prune.sensitivity import Sensitivity, sensitivity_scan
from tersor.prune.structured import ChannelResult, GroupRow, prune_channels
from tersor.prune.zeros import KeptZeros

__all__ = [
    "CRITERIA",
    "SCHEDULES",
    "Blocks",
    "Calibration",
    "ChannelResult",
    "Criterion",
    "Cubic",
    "Entropy",
    "Fisher",
    "Gradient",
    "GroupRow",
    "KeptZeros",
    "Linear",
    "Magnitude",
    "NofM",
    "OneShot",
    "Pattern",
    "PrunableLayer",
    "PruneResult",
    "PrunedLayer",
    "Pruner",
    "Random",
    "Schedule",
    "Sensitivity",
    "SparseGPT",
    "Statistics",
    "Unstructured",
    "Wanda",
    "find_layers",
    "fit",
    "parse_pattern",
    "prune_channels",
    "register_criterion",
    "register_schedule",
    "sensitivity_scan",
]

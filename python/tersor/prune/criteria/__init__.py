"""The criteria, one file each. ``CRITERIA`` has them by name."""

from tersor.prune.criteria.entropy import Entropy
from tersor.prune.criteria.fisher import Fisher
from tersor.prune.criteria.gradient import Gradient
from tersor.prune.criteria.magnitude import Magnitude
from tersor.prune.criteria.random import Random
from tersor.prune.criteria.registry import CRITERIA, Criterion, Statistics, make_criterion, register_criterion
from tersor.prune.criteria.sparsegpt import SparseGPT
from tersor.prune.criteria.wanda import Wanda

__all__ = [
    "CRITERIA",
    "Criterion",
    "Entropy",
    "Fisher",
    "Gradient",
    "Magnitude",
    "Random",
    "SparseGPT",
    "Statistics",
    "Wanda",
    "make_criterion",
    "register_criterion",
]

"""The steps a recipe can hold, one file each. ``tersor.recipe.STEPS`` has them by name."""

from tersor.recipe import STEPS, Step
from tersor.steps.distill import Distill
from tersor.steps.prune import Prune
from tersor.steps.qat import QAT
from tersor.steps.quantize import Quantize

__all__ = ["QAT", "STEPS", "Distill", "Prune", "Quantize", "Step"]

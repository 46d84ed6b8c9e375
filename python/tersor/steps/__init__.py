"""The steps a recipe can hold, one file each. ``tersor.recipe.STEPS`` has them by name."""

from tersor.recipe import STEPS, Step
from tersor.steps.distill import Distill
from tersor.steps.drop_layers import DropLayers
from tersor.steps.equalize import Equalize
from tersor.steps.factorize import Factorize
from tersor.steps.fold_batch_norm import FoldBatchNorm
from tersor.steps.prune import Prune
from tersor.steps.prune_channels import PruneChannels
from tersor.steps.qat import QAT
from tersor.steps.quantize import Quantize
from tersor.steps.shrink_kernels import ShrinkKernels

__all__ = [
    "QAT",
    "STEPS",
    "Distill",
    "DropLayers",
    "Equalize",
    "Factorize",
    "FoldBatchNorm",
    "Prune",
    "PruneChannels",
    "Quantize",
    "ShrinkKernels",
    "Step",
]

"""Simpler structure in plain PyTorch: fewer blocks, smaller kernels, batch norms folded, identities removed.

Every change is a recorded edit (tersor.structure), so the result saves and loads.
"""

from tersor.restructure.batch_norm import FoldResult, fold_batch_norm
from tersor.restructure.drop import DropResult, drop_layers
from tersor.restructure.identities import remove_identities
from tersor.restructure.kernels import ShrinkResult, ShrinkRow, shrink_kernels

__all__ = [
    "DropResult",
    "FoldResult",
    "ShrinkResult",
    "ShrinkRow",
    "drop_layers",
    "fold_batch_norm",
    "remove_identities",
    "shrink_kernels",
]

"""Compression and inference over many workers: layer by layer from files, on engines that exist (processes, Ray).

Distillation and gradual pruning over many processes are in :mod:`tersor.training`: start them with ``torchrun``.
"""

from tersor.scale.engines import ENGINES, map_over
from tersor.scale.inference import predict, predict_dataset
from tersor.scale.jobs import GPTQ, SVD, LayerJob, SparseGPT
from tersor.scale.layers import SolvedLayer, gather_grams, solve_layers

__all__ = [
    "ENGINES",
    "GPTQ",
    "SVD",
    "LayerJob",
    "SolvedLayer",
    "SparseGPT",
    "gather_grams",
    "map_over",
    "predict",
    "predict_dataset",
    "solve_layers",
]

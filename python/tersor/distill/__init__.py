"""Distillation in plain PyTorch: losses, pairing of layers, a loss module for one's own loop, and a loop.

The student is a compressed copy of the teacher, a shallower one, or any other module.
"""

from tersor.distill.distiller import Distiller
from tersor.distill.fit import DistillResult, fit
from tersor.distill.losses import (
    FSP,
    KL,
    LOSSES,
    PKT,
    WEIGHTS,
    AttentionMap,
    AttentionTransfer,
    Cosine,
    DecoupledKD,
    DistillLoss,
    FeatureLoss,
    Given,
    Hidden,
    Hint,
    Label,
    LogitsMSE,
    Match,
    OutputLoss,
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
    make_loss,
    register_loss,
)

__all__ = [
    "FSP",
    "KL",
    "LOSSES",
    "PKT",
    "WEIGHTS",
    "AttentionMap",
    "AttentionTransfer",
    "Cosine",
    "DecoupledKD",
    "DistillLoss",
    "DistillResult",
    "Distiller",
    "FeatureLoss",
    "Given",
    "Hidden",
    "Hint",
    "Label",
    "LogitsMSE",
    "Match",
    "OutputLoss",
    "RelationalAngle",
    "RelationalDistance",
    "SimilarityPreserving",
    "fit",
    "make_loss",
    "register_loss",
]

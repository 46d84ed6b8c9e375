"""Every distillation loss, one file each."""

from tersor.distill.losses.attention_map import AttentionMap
from tersor.distill.losses.attention_transfer import AttentionTransfer
from tersor.distill.losses.cosine import Cosine
from tersor.distill.losses.dkd import DecoupledKD
from tersor.distill.losses.fsp import FSP
from tersor.distill.losses.hidden import Hidden
from tersor.distill.losses.hint import Hint
from tersor.distill.losses.kl import KL
from tersor.distill.losses.label import Label
from tersor.distill.losses.logits_mse import LogitsMSE
from tersor.distill.losses.match import Match
from tersor.distill.losses.pkt import PKT
from tersor.distill.losses.registry import (
    LOSSES,
    WEIGHTS,
    DistillLoss,
    FeatureLoss,
    Given,
    OutputLoss,
    make_loss,
    register_loss,
    to_spec,
)
from tersor.distill.losses.relational_angle import RelationalAngle
from tersor.distill.losses.relational_distance import RelationalDistance
from tersor.distill.losses.similarity import SimilarityPreserving

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
    "make_loss",
    "register_loss",
    "to_spec",
]

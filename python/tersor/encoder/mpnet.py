"""Hugging Face MPNet: BERT with scores for relative positions, which the encoder hands to every block. Post-norm."""

from __future__ import annotations

from typing import Any

from torch import nn

from tersor.encoder.family import LINEAR, Anatomy, Family, activation_name, are, register_family

_QKV = ("attention.attn.q", "attention.attn.k", "attention.attn.v")
_OUT, _UP, _DOWN = "attention.attn.o", "intermediate.dense", "output.dense"
_NORMS = ("attention.LayerNorm", "output.LayerNorm")


@register_family
class MPNet(Family):
    """MPNetLayer."""

    name = "mpnet"
    bias_name = "position_bias"

    @classmethod
    def anatomy(cls, module: nn.Module) -> Anatomy | None:
        """The parts of `module`, or None when it is built in another way; ValueError says what keeps it out."""
        if not (are(module, LINEAR, *_QKV, _OUT, _UP, _DOWN) and are(module, nn.LayerNorm, *_NORMS)):
            return None
        layer: Any = module
        return Anatomy(
            qkv=_QKV,
            out=_OUT,
            up=_UP,
            down=_DOWN,
            norm1=_NORMS[0],
            norm2=_NORMS[1],
            heads=layer.attention.attn.num_attention_heads,
            activation=activation_name(layer.intermediate.intermediate_act_fn),
            norm_first=False,
        )

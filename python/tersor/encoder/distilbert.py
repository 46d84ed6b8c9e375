"""Hugging Face DistilBERT. Post-norm."""

from __future__ import annotations

from typing import Any

from torch import nn

from tersor.encoder.family import LINEAR, Anatomy, Family, activation_name, are, register_family

_QKV = ("attention.q_lin", "attention.k_lin", "attention.v_lin")
_OUT, _UP, _DOWN = "attention.out_lin", "ffn.lin1", "ffn.lin2"
_NORMS = ("sa_layer_norm", "output_layer_norm")


@register_family
class DistilBert(Family):
    """TransformerBlock. Up to transformers 4 its arguments were called x and attn_mask."""

    name = "distilbert"

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
            heads=layer.attention.n_heads,
            activation=activation_name(layer.ffn.activation),
            norm_first=False,
        )

"""The encoder side of Hugging Face encoder-decoder models: BART, Marian (post-norm), mBART, Pegasus (pre-norm)."""

from __future__ import annotations

from typing import Any

from torch import nn

from tersor.encoder.family import LINEAR, Anatomy, Family, activation_name, are, register_family

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_OUT, _UP, _DOWN = "self_attn.out_proj", "fc1", "fc2"
_NORMS = ("self_attn_layer_norm", "final_layer_norm")


@register_family
class Bart(Family):
    """BartEncoderLayer and its copies. Which side of a part the norm is on shows only in what a layer computes."""

    name = "bart"

    @classmethod
    def anatomy(cls, module: nn.Module) -> Anatomy | None:
        """The parts of `module`, or None when it is built in another way; ValueError says what keeps it out."""
        if not (are(module, LINEAR, *_QKV, _OUT, _UP, _DOWN) and are(module, nn.LayerNorm, *_NORMS)):
            return None
        layer: Any = module
        if "encoder_attn" in module._modules or getattr(layer.self_attn, "is_decoder", False):
            raise ValueError("it is a decoder, whose attention is causal")
        return Anatomy(
            qkv=_QKV,
            out=_OUT,
            up=_UP,
            down=_DOWN,
            norm1=_NORMS[0],
            norm2=_NORMS[1],
            heads=layer.self_attn.num_heads,
            activation=activation_name(layer.activation_fn),
            norm_first=None,
        )

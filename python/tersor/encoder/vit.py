"""Hugging Face ViT and what is built like it (DeiT), in the forms of transformers 5 and 4. Pre-norm."""

from __future__ import annotations

from typing import Any

from torch import nn

from tersor.encoder.family import LINEAR, Anatomy, Family, activation_name, are, register_family

_NEW = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2")
_OLD = (
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
_NORMS = ("layernorm_before", "layernorm_after")


@register_family
class ViT(Family):
    """ViTLayer."""

    name = "vit"

    @classmethod
    def anatomy(cls, module: nn.Module) -> Anatomy | None:
        """The parts of `module`, or None when it is built in another way; ValueError says what keeps it out."""
        paths = next((paths for paths in (_NEW, _OLD) if are(module, LINEAR, *paths)), None)
        if paths is None or not are(module, nn.LayerNorm, *_NORMS):
            return None
        layer: Any = module
        attention = layer.attention if paths is _NEW else layer.attention.attention
        activation = layer.mlp.activation_fn if paths is _NEW else layer.intermediate.intermediate_act_fn
        return Anatomy(
            qkv=paths[:3],
            out=paths[3],
            up=paths[4],
            down=paths[5],
            norm1=_NORMS[0],
            norm2=_NORMS[1],
            heads=attention.num_attention_heads,
            activation=activation_name(activation),
            norm_first=True,
        )

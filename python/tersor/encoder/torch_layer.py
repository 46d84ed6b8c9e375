"""torch's own nn.TransformerEncoderLayer, post- and pre-norm. Its attention holds three layers in one weight."""

from __future__ import annotations

from typing import Any

from torch import nn

from tersor.encoder.family import LINEAR, Anatomy, Family, activation_name, are, register_family

_ATTENTION, _OUT, _UP, _DOWN = "self_attn", "self_attn.out_proj", "linear1", "linear2"
_NORMS = ("norm1", "norm2")


@register_family
class TorchLayer(Family):
    """nn.TransformerEncoderLayer with batch_first=True."""

    name = "torch"
    mask_names = ("src_key_padding_mask",)
    true_is_kept = False

    @classmethod
    def anatomy(cls, module: nn.Module) -> Anatomy | None:
        """The parts of `module`, or None when it is built in another way; ValueError says what keeps it out."""
        if not isinstance(module, nn.TransformerEncoderLayer) or not are(module, nn.LayerNorm, *_NORMS):
            return None
        attention: Any = module.self_attn
        if not are(module, nn.MultiheadAttention, _ATTENTION) or not are(module, LINEAR, _OUT, _UP, _DOWN):
            return None
        if not attention.batch_first:
            raise ValueError("batch_first=False: only batch_first=True is supported")
        if not attention._qkv_same_embed_dim or attention.bias_k is not None or attention.add_zero_attn:
            raise ValueError("its attention has keys or values of their own width, or adds some")
        return Anatomy(
            qkv=(_ATTENTION,),
            out=_OUT,
            up=_UP,
            down=_DOWN,
            norm1=_NORMS[0],
            norm2=_NORMS[1],
            heads=attention.num_heads,
            activation=activation_name(module.activation),
            norm_first=module.norm_first,
        )

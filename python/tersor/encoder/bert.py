"""Hugging Face BERT and what is built like it: RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, MiniLM. Post-norm."""

from __future__ import annotations

from typing import Any

from torch import nn

from tersor.encoder.family import LINEAR, Anatomy, Family, activation_name, are, register_family

_QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
_OUT, _UP, _DOWN = "attention.output.dense", "intermediate.dense", "output.dense"
_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")


@register_family
class Bert(Family):
    """BertLayer and its copies."""

    name = "bert"

    @classmethod
    def anatomy(cls, module: nn.Module) -> Anatomy | None:
        """The parts of `module`, or None when it is built in another way; ValueError says what keeps it out."""
        if not (are(module, LINEAR, *_QKV, _OUT, _UP, _DOWN) and are(module, nn.LayerNorm, *_NORMS)):
            return None
        layer: Any = module
        attention = layer.attention.self
        if getattr(layer, "is_decoder", False) or getattr(attention, "is_decoder", False):
            raise ValueError("it is a decoder, whose attention is causal")
        return Anatomy(
            qkv=_QKV,
            out=_OUT,
            up=_UP,
            down=_DOWN,
            norm1=_NORMS[0],
            norm2=_NORMS[1],
            heads=attention.num_attention_heads,
            activation=activation_name(layer.intermediate.intermediate_act_fn),
            norm_first=False,
        )

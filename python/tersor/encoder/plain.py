"""An encoder block as a float module of our own: what an EncoderBlock that stands alone behaves like."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tersor.encoder.family import Anatomy, Family, register_family
from tersor.encoder.reference import Layer, activate, encoder_block


@dataclass(frozen=True)
class PlainShape:
    """See tersor.encoder.reference.Shape."""

    heads: int
    activation: str
    norm_first: bool


class Activation(nn.Module):
    """An activation of tersor.ops.ACTIVATIONS as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return activate(x, self.name)

    def extra_repr(self) -> str:
        """The name."""
        return self.name


class PlainBlock(nn.Module):
    """An encoder block of linear layers and layer norms; the formula is in tersor.encoder.reference."""

    def __init__(
        self,
        hidden: int,
        heads: int,
        ffn: int,
        *,
        head_dim: int | None = None,
        activation: str = "gelu",
        norm_first: bool = False,
        eps: tuple[float, float] = (1e-5, 1e-5),
        device: torch.device | str | None = None,
    ) -> None:
        """`head_dim`: hidden // heads where it is not given. `eps`: of the two norms."""
        super().__init__()
        attention = heads * (hidden // heads if head_dim is None else head_dim)
        self.heads, self.norm_first = heads, norm_first
        self.query, self.key, self.value = (nn.Linear(hidden, attention, device=device) for _ in range(3))
        self.out = nn.Linear(attention, hidden, device=device)
        self.up, self.down = nn.Linear(hidden, ffn, device=device), nn.Linear(ffn, hidden, device=device)
        self.norm1, self.norm2 = (nn.LayerNorm(hidden, eps=value, device=device) for value in eps)
        self.activation_fn = Activation(activation)

    @property
    def activation(self) -> str:
        """The name of the activation function."""
        return self.activation_fn.name

    def forward(self, x: Tensor, mask: Tensor | None = None, score_bias: Tensor | None = None) -> Tensor:
        """y [batch, tokens, hidden].

        Args:
            x: [batch, tokens, hidden].
            mask: bool, True for real tokens, or float to add to the scores: [batch, tokens], or anything that
                broadcasts to [batch, heads, tokens, tokens].
            score_bias: float [batch or 1, heads, tokens, tokens], added to the scores.
        """
        scores = score_bias
        if mask is not None:
            wide = mask[:, None, None] if mask.dim() == 2 else mask
            if wide.dtype == torch.bool:
                wide = torch.zeros(wide.shape, dtype=x.dtype, device=x.device).masked_fill(~wide, -torch.inf)
            scores = wide if scores is None else wide + scores

        def qkv(z: Tensor) -> Tensor:
            return torch.cat([self.query(z), self.key(z), self.value(z)], -1)

        layers: dict[str, Layer] = {"qkv": qkv, "out": self.out, "up": self.up, "down": self.down}
        return encoder_block(x, {**layers, "norm1": self.norm1, "norm2": self.norm2}, self, scores)


@register_family
class Plain(Family):
    """PlainBlock."""

    name = "plain"
    mask_names = ("mask",)
    bias_name = "score_bias"
    has_dropout = False

    @classmethod
    def anatomy(cls, module: nn.Module) -> Anatomy | None:
        """The parts of a PlainBlock, None for anything else."""
        return plain_anatomy(module) if isinstance(module, PlainBlock) else None


def plain_anatomy(block: PlainBlock) -> Anatomy:
    """The parts of a PlainBlock."""
    return Anatomy(
        qkv=("query", "key", "value"),
        out="out",
        up="up",
        down="down",
        norm1="norm1",
        norm2="norm2",
        heads=block.heads,
        activation=block.activation,
        norm_first=block.norm_first,
    )

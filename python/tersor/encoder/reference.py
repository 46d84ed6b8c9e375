"""What an encoder block computes, in plain torch: the definition, and the path for what the fused op has no form for.

post-norm:  h = norm1(x + attention(x)),      y = norm2(h + down(activation(up(h))))
pre-norm:   h = x + attention(norm1(x)),      y = h + down(activation(up(norm2(h))))
attention(z) = out(softmax(q k^T / sqrt(head size) + scores) v), head by head, with q, k, v = qkv(z)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

PRODUCTS = ("qkv", "out", "up", "down")
"""The linear layers of a block: of queries, keys and values, behind attention, into and out of the feed-forward."""

NORMS = ("norm1", "norm2")
"""Its norms: of the attention, of the feed-forward part."""

Layer = Callable[[Tensor], Tensor]


class Shape(Protocol):
    """What the reference has to know beside the tensors."""

    @property
    def heads(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def norm_first(self) -> bool: ...


def encoder_block(x: Tensor, layers: Mapping[str, Layer], shape: Shape, scores: Tensor | None = None) -> Tensor:
    """y [batch, tokens, hidden] of x [batch, tokens, hidden].

    Args:
        layers: what each of PARTS does with its input [batch, tokens, ...]; layers_of makes them from tensors. The
            outputs of qkv are those of queries, keys and values, one behind the other.
        scores: added to q k^T, broadcast to [batch, heads, tokens, tokens]; -inf takes a key out. A row of nothing
            but -inf gives 0.
    """

    def attention(z: Tensor) -> Tensor:
        parts = layers["qkv"](z)  # [batch, tokens, 3 * heads * head size]
        parts = parts.view(*z.shape[:2], 3, shape.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # [batch, heads, tokens, head size] each
        products = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if scores is not None:
            products = products + scores.to(products.dtype)
        mixed = torch.softmax(products, -1).nan_to_num(0.0) @ v
        return layers["out"](mixed.transpose(1, 2).flatten(2))

    def feed_forward(z: Tensor) -> Tensor:
        return layers["down"](activate(layers["up"](z), shape.activation))

    if shape.norm_first:
        h = x + attention(layers["norm1"](x))
        return h + feed_forward(layers["norm2"](h))
    h = layers["norm1"](x + attention(x))
    return layers["norm2"](h + feed_forward(h))


def layers_of(tensors: Mapping[str, Tensor], eps1: float, eps2: float) -> dict[str, Layer]:
    """The layers of a block from their tensors: each of PARTS with ".weight" and ".bias"."""

    def linear(name: str) -> Layer:
        return lambda z: F.linear(z, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str, eps: float) -> Layer:
        return lambda z: F.layer_norm(z, z.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    return {name: linear(name) for name in PRODUCTS} | {"norm1": norm("norm1", eps1), "norm2": norm("norm2", eps2)}


def activate(z: Tensor, name: str) -> Tensor:
    """An activation of tersor.ops.ACTIVATIONS by its name."""
    if name == "gelu_tanh":
        return F.gelu(z, approximate="tanh")
    functions: dict[str, Layer] = {"none": lambda t: t, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}
    return functions[name](z)


def padded_scores(keep: Tensor, score_bias: Tensor | None = None) -> Tensor:
    """`scores` for keep bool [batch, tokens] and score_bias [heads, tokens, tokens]."""
    scores = torch.zeros(keep.shape, dtype=torch.float32).masked_fill(~keep, -torch.inf)[:, None, None]
    return scores if score_bias is None else scores + score_bias

"""Gradients through a frozen int8 layer: the straight-through estimate, which takes quantisation as the identity.

dz = dy * activation'(z), dx = dz W with the dequantised W, dbias = sum of dz; the weight is frozen. Source: Bengio
et al., "Estimating or propagating gradients through stochastic neurons", 2013.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tersor.nn.packed_weight import dequantize
from tersor.ops import ACTIVATIONS, LINEAR_S8

_NOTHING = torch.empty(0)
_NAMES = {code: name for name, code in ACTIVATIONS.items()}


class LinearS8Function(torch.autograd.Function):
    """linear_s8 without a residual, differentiable in x and bias."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, packed: Tensor, bias: Tensor, out_features: int, activation: int, x_scale: float, x_zero: int
    ) -> Tensor:
        y: Tensor = LINEAR_S8(x, packed, bias, _NOTHING, out_features, activation, x_scale, x_zero)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, packed, bias, ctx.out_features, ctx.activation, ctx.x_scale, ctx.x_zero = inputs
        ctx.in_features = x.shape[-1]
        ctx.bias_dtype = bias.dtype
        has_activation = _NAMES[ctx.activation] != "none"  # its derivative is taken at z, computed again from x
        ctx.save_for_backward(packed, *((x, bias) if has_activation else ()))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        packed, *recompute = ctx.saved_tensors
        dz = dy  # [..., out_features]
        if recompute:
            x, bias = recompute
            z = linear_s8_with_grad(x, packed, bias, ctx.out_features, 0, ctx.x_scale, ctx.x_zero)
            dz = _activation_backward(_NAMES[ctx.activation], dy, z)
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            dx = dz @ dequantize(packed, ctx.out_features, ctx.in_features, dz.dtype)
        if ctx.needs_input_grad[2]:
            dbias = dz.reshape(-1, ctx.out_features).sum(0, dtype=ctx.bias_dtype)
        return dx, None, dbias, None, None, None, None


def linear_s8_with_grad(
    x: Tensor, packed: Tensor, bias: Tensor, out_features: int, activation: int, x_scale: float, x_zero: int
) -> Tensor:
    """linear_s8 without a residual, as part of the autograd graph; bias may be empty."""
    y: Tensor = LinearS8Function.apply(  # type: ignore[no-untyped-call]
        x, packed, bias, out_features, activation, x_scale, x_zero
    )
    return y


def _activation_backward(name: str, dy: Tensor, z: Tensor) -> Tensor:
    aten = torch.ops.aten
    if name == "relu":
        result = aten.threshold_backward(dy, z, 0)
    elif name == "silu":
        result = aten.silu_backward(dy, z)
    else:
        result = aten.gelu_backward(dy, z, approximate="tanh" if name == "gelu_tanh" else "none")
    return result  # type: ignore[no-any-return]

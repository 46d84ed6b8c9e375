"""Gradients of an int8 convolution: those of the float layer with the dequantised weight (straight-through)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        y: Tensor = layer._compute(x.detach(), None if bias is None else bias.detach())
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        layer, dy = ctx.layer, gradients[0]
        dx = db = None
        batched = len(ctx.shape) == layer._dimensions + 2
        if ctx.needs_input_grad[1]:
            dx = _input_gradient(layer, ctx.shape if batched else (1, *ctx.shape), dy if batched else dy[None])
            dx = (dx if batched else dx[0]).to(ctx.dtype)
        if ctx.needs_input_grad[2]:
            kept = dy.dim() - layer._dimensions - 1
            db = dy.float().sum([i for i in range(dy.dim()) if i != kept]).to(ctx.bias_dtype)
        return None, dx, db


def conv_with_grad(layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    """layer._compute(x, bias) with gradients for x and bias."""
    y: Tensor = _Conv.apply(layer, x, bias)  # type: ignore[no-untyped-call]
    return y


def _input_gradient(layer: Any, shape: torch.Size | tuple[int, ...], dy: Tensor) -> Tensor:
    """The transposed convolution with the layer's weight; the picture is padded first, so any padding is zeros."""
    before, after = layer._shape[9:11], layer._shape[11:13]
    sizes = [1, *shape[2:]] if layer._dimensions == 1 else list(shape[2:])
    padded = [size + b + a for size, b, a in zip(sizes, before, after, strict=True)]
    weight = layer.weight.float()
    weight = weight if layer._dimensions == 2 else weight[:, :, None]
    stride, dilation = layer._shape[5:7], layer._shape[7:9]
    dy = dy.float() if layer._dimensions == 2 else dy.float()[:, :, None]
    wide: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
        [shape[0], shape[1], *padded], weight, dy, tuple(stride), 0, tuple(dilation), layer.groups
    )
    wide = wide[:, :, before[0] : before[0] + sizes[0], before[1] : before[1] + sizes[1]]
    return wide if layer._dimensions == 2 else wide[:, :, 0]

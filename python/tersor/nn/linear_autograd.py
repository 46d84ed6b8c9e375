"""Gradients through a frozen layer: the straight-through estimate, which takes quantisation as the identity.

dz = dy * activation'(z), dx = dz W with the dequantised W, dbias = sum of dz; the weight is frozen. Source: Bengio
et al., "Estimating or propagating gradients through stochastic neurons", 2013.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tersor.nn.codebook_packed import dequantize_codes
from tersor.nn.lowrank_packed import dequantize_lowrank, widen_lowrank
from tersor.nn.packed_weight import dequantize
from tersor.nn.sparse_packed import dequantize_sparse, widen_sparse
from tersor.ops import ACTIVATIONS, LINEAR_LUT4, LINEAR_S8, LOWRANK_F32, LOWRANK_S8, SPMM_F32, SPMM_S8


def _spmm_f32(
    x: Tensor, packed: Tensor, bias: Tensor, residual: Tensor, out_features: int, activation: int, *_: float
) -> Tensor:
    y: Tensor = SPMM_F32(x, packed, bias, residual, out_features, activation)
    return y


def _lowrank_f32(
    x: Tensor, packed: Tensor, bias: Tensor, residual: Tensor, out_features: int, activation: int, *_: float
) -> Tensor:
    y: Tensor = LOWRANK_F32(x, packed, bias, residual, out_features, activation)
    return y


LINEAR_OPS: Final[dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]]] = {
    "linear_s8": (LINEAR_S8, dequantize),
    "linear_lut4": (LINEAR_LUT4, dequantize_codes),
    "spmm_s8": (SPMM_S8, dequantize_sparse),
    "spmm_f32": (_spmm_f32, widen_sparse),
    "lowrank_s8": (LOWRANK_S8, dequantize_lowrank),
    "lowrank_f32": (_lowrank_f32, widen_lowrank),
}
"""By name: an op with the arguments of LINEAR_S8, and the one that gives its weight back in floats."""

_NOTHING = torch.empty(0)
_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}
_NAMES = {code: name for name, code in ACTIVATIONS.items()}


class LinearFunction(torch.autograd.Function):
    """An op of LINEAR_OPS, by its name, without a residual, differentiable in x and bias."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        op: str,
        x: Tensor,
        packed: Tensor,
        bias: Tensor,
        out_features: int,
        activation: int,
        x_scale: float,
        x_zero: int,
    ) -> Tensor:
        y: Tensor = LINEAR_OPS[op][0](x, packed, bias, _NOTHING, out_features, activation, x_scale, x_zero)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.op, x, packed, bias, ctx.out_features, ctx.activation, ctx.x_scale, ctx.x_zero = inputs
        ctx.in_features = x.shape[-1]
        ctx.bias_dtype, ctx.y_shape = bias.dtype, output.shape
        has_activation = _NAMES[ctx.activation] != "none"  # its derivative is taken at z, computed again from x
        saved = (packed, *((x, bias) if has_activation else ()))
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dz = _through_activation(ctx, dy)  # [..., out_features]
        packed, dx, dbias = ctx.saved_tensors[0], None, None
        if ctx.needs_input_grad[1]:
            dx = dz @ LINEAR_OPS[ctx.op][1](packed, ctx.out_features, ctx.in_features, dz.dtype)
        if ctx.needs_input_grad[3]:
            dbias = dz.reshape(-1, ctx.out_features).sum(0, dtype=ctx.bias_dtype)
        return None, dx, None, dbias, None, None, None, None


class LinearForwardMode(LinearFunction):
    """With forward-mode derivatives too. A class of its own, since torch.compile refuses functions with a jvp."""

    @staticmethod
    def jvp(ctx: Any, op: None, dx: Tensor | None, dpacked: None, dbias: Tensor | None, *rest: None) -> Tensor:
        dz: Tensor | None = None  # [..., out_features]
        if dx is not None:
            weight = LINEAR_OPS[ctx.op][1](ctx.saved_tensors[0], ctx.out_features, ctx.in_features, dx.dtype)
            dz = dx @ weight.t()
        if dbias is not None:
            dz = dbias.expand(ctx.y_shape) if dz is None else dz + dbias
        assert dz is not None
        return _through_activation(ctx, dz)


def linear_with_grad(
    op: str, x: Tensor, packed: Tensor, bias: Tensor, out_features: int, activation: int, x_scale: float, x_zero: int
) -> Tensor:
    """The op without a residual, as part of the autograd graph; bias may be empty."""
    function = LinearFunction if forward_ad._current_level < 0 else LinearForwardMode
    y: Tensor = function.apply(  # type: ignore[no-untyped-call]
        op, x, packed, bias, out_features, activation, x_scale, x_zero
    )
    return y


def _through_activation(ctx: Any, dy: Tensor) -> Tensor:
    """dy * activation'(z), elementwise, with z = x W^T + bias computed again."""
    name = _NAMES[ctx.activation]
    if name == "none":
        return dy
    packed, x, bias = ctx.saved_tensors
    z = linear_with_grad(ctx.op, x, packed, bias, ctx.out_features, ACTIVATIONS["none"], ctx.x_scale, ctx.x_zero)
    if name == "relu":
        return torch.where(z > 0, dy, torch.zeros_like(dy))
    if name == "silu":
        gate = torch.sigmoid(z)
        return dy * (gate * (1 + z * (1 - gate)))
    return torch.ops.aten.gelu_backward(dy, z, approximate=_APPROXIMATE[name])  # type: ignore[no-any-return]

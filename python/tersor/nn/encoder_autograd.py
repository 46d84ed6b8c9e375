"""The gradients of an encoder block: the native op forwards, the float block's own code backwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tersor.encoder.family import Call
from tersor.encoder.masks import note_output
from tersor.ops import ENCODER_BLOCK

if TYPE_CHECKING:
    from tersor.nn.encoder_block import EncoderBlock


class _BlockFunction(torch.autograd.Function):
    """The native op forwards; backwards the float path is run again, on the same x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        score_bias: Tensor | None,
        compute: Callable[[], Tensor],
        again: Callable[[Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(x, score_bias)
        ctx.again = again
        return compute()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:2]
        inputs = [
            None if tensor is None else tensor.detach().requires_grad_(want)
            for tensor, want in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            y = ctx.again(*inputs)
        sources = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want and tensor is not None]
        grads = iter(torch.autograd.grad(y, sources, dy))
        return (*(next(grads) if want else None for want in wanted), None, None)


def block_with_grad(
    block: EncoderBlock, call: Call, keep: Tensor, scores: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor:
    """The result of the native op as part of the autograd graph: the straight-through estimate."""
    names = block._frame.names
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    bias_name = block._frame.family.bias_name

    def compute() -> Tensor:
        y: Tensor = ENCODER_BLOCK(call.x.detach(), keep, scores.detach(), block.packed)
        return y

    def again(x: Tensor, score_bias: Tensor | None) -> Tensor:
        changed = {names[0]: x} if score_bias is None else {names[0]: x, bias_name: score_bias}
        output = block.float_forward(**{**given, **changed})
        y: Tensor = output[0] if isinstance(output, tuple) else output
        return y * keep[..., None].to(y.dtype) if keep.numel() else y

    y: Tensor = _BlockFunction.apply(call.x, call.score_bias, compute, again)  # type: ignore[no-untyped-call]
    note_output(y)
    return y

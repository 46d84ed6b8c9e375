"""Around the native op of an encoder block: when it can't be used, how it is compiled, and its gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tersor.encoder.family import Call
from tersor.encoder.masks import note_output, recognise
from tersor.encoder.plain import PlainShape
from tersor.encoder.reference import NORMS, PRODUCTS, encoder_block, layers_of
from tersor.nn.encoder_packed import inspect_block, part_of
from tersor.nn.encoder_product import product_extents
from tersor.ops import ENCODER_BLOCK

if TYPE_CHECKING:
    from tersor.nn.encoder_block import EncoderBlock

_CAPTURING = "transformers.utils.output_capturing"
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def needs_float(block: EncoderBlock, x: Tensor) -> bool:
    """Whether something but the mask keeps a call from the native op: training, hooks inside, an unusual x."""
    if (block.training and block._frame.family.has_dropout) or x.is_nested or x.dim() != 3 or x.numel() == 0:
        return True
    tables = block.__dict__.get("_hook_tables")
    if tables is None:
        tables = block.__dict__["_hook_tables"] = list(_inner_tables(block))
    if any(tables) and _hooked(tables):
        return True
    return not torch.compiler.is_compiling() and _is_wrapped(x)


def _inner_tables(block: EncoderBlock) -> Iterator[dict[int, Callable[..., Any]]]:
    for module in block.modules():
        if module is not block:
            yield module._forward_hooks
            yield module._forward_pre_hooks


def _hooked(tables: list[dict[int, Callable[..., Any]]]) -> bool:
    """Whether a hook wants to see something. Those that transformers leaves in a model sleep most of the time."""
    capturing = sys.modules.get(_CAPTURING)
    collector = getattr(capturing, "_active_collector", None)
    if collector is None:
        return True
    wanted = {*(collector.get() or ())} - {"hidden_states", "_hidden_states_layers"}
    return bool(wanted) or any(hook.__module__ != _CAPTURING for table in tables for hook in table.values())


# --- Compiled.


def compiled_block(
    x: Tensor, mask: Tensor | None, score_bias: Tensor | None, packed: Tensor, true_is_kept: bool
) -> Tensor:
    """The block as a graph sees it: what a mask holds is looked at when the graph runs."""
    if mask is None and score_bias is None:
        empty = x.new_empty(0, dtype=torch.float32)
        y: Tensor = ENCODER_BLOCK(x, x.new_empty(0, dtype=torch.bool), empty, packed)
        return y
    masked: Tensor = masked_block(x, mask, score_bias, packed, true_is_kept)
    return masked


@torch.library.custom_op("tersor::encoder_block_masked", mutates_args=())
def masked_block(
    x: Tensor, mask: Tensor | None, score_bias: Tensor | None, packed: Tensor, true_is_kept: bool
) -> Tensor:
    """An encoder block with a mask in any form: natively where the mask is about padding, else with float weights."""
    found = recognise(x, mask, score_bias, true_is_kept)
    if found is not None:
        y: Tensor = ENCODER_BLOCK(x, *found, packed)
        return y
    scores = None if mask is None else _as_scores(mask, true_is_kept)
    if score_bias is not None:
        scores = score_bias if scores is None else scores + score_bias
    facts = inspect_block(packed)
    attention = facts["heads"] * facts["head_dim"]
    shapes = product_extents(facts["hidden"], attention, facts["ffn"])
    tensors = {}
    for name in PRODUCTS:
        tensors[f"{name}.weight"] = part_of(packed, name, shapes[name], x.dtype)
        tensors[f"{name}.bias"] = part_of(packed, f"{name}.bias", (1, shapes[name][0]), x.dtype)[0]
    for name in (f"{norm}.{key}" for norm in NORMS for key in ("weight", "bias")):
        tensors[name] = part_of(packed, name, (1, facts["hidden"]), x.dtype)[0]
    layers = layers_of(tensors, facts["eps1"], facts["eps2"])
    return encoder_block(x, layers, PlainShape(facts["heads"], facts["activation"], facts["norm_first"]), scores)


@masked_block.register_fake
def _masked_block_fake(
    x: Tensor, mask: Tensor | None, score_bias: Tensor | None, packed: Tensor, true_is_kept: bool
) -> Tensor:
    return x.new_empty(x.shape)


def _as_scores(mask: Tensor, true_is_kept: bool) -> Tensor:
    wide = mask[:, None, None] if mask.dim() == 2 else mask
    if wide.is_floating_point():
        return wide
    kept = wide.bool() if true_is_kept else ~wide.bool()
    return torch.zeros(kept.shape).masked_fill(~kept, -torch.inf)


# --- Gradients.


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

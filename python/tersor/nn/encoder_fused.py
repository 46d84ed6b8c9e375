"""Around the native op of an encoder block: when it can't be used, and how it is compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tersor.encoder.family import Call
from tersor.encoder.masks import note_output, recognise
from tersor.encoder.plain import PlainShape
from tersor.encoder.reference import NORMS, PRODUCTS, encoder_block, layers_of
from tersor.errors import TersorError
from tersor.nn.encoder_autograd import block_with_grad
from tersor.nn.encoder_packed import inspect_block, part_of
from tersor.nn.encoder_product import product_extents
from tersor.nn.packed_layer import DTYPES
from tersor.ops import ENCODER_BLOCK

if TYPE_CHECKING:
    from tersor.nn.encoder_block import EncoderBlock

_CAPTURING = "transformers.utils.output_capturing"
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def fused_block(block: EncoderBlock, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The result of the native op, or None where the call has no form for it; raises TersorError for a wrong input."""
    x, mask, score_bias = call
    if (problem := _input_problem(block, x)) is not None:
        raise TersorError(f"{block._label()}: {problem}")
    if needs_float(block, x):
        return None
    packed: Tensor = block._buffers["packed"]  # type: ignore[assignment]
    grad = torch.is_grad_enabled() and (x.requires_grad or (score_bias is not None and score_bias.requires_grad))
    if torch.compiler.is_dynamo_compiling():
        return None if grad else compiled_block(x, mask, score_bias, packed, block._frame.family.true_is_kept)
    found = recognise(x, mask, score_bias, block._frame.family.true_is_kept)
    if found is None or forward_ad._current_level >= 0:
        return None
    keep, scores = found
    if grad:
        return block_with_grad(block, call, keep, scores, args, kwargs)
    y: Tensor = ENCODER_BLOCK(x, keep, scores, packed)
    note_output(y)
    return y


def _input_problem(block: EncoderBlock, x: object) -> str | None:
    hidden = block._settings.hidden
    if not block.has_weights:
        return "the block has no weights yet; load a state dict first"
    if not isinstance(x, Tensor):
        return f"expected a tensor [batch, tokens, {hidden}], got {type(x).__name__}"
    if x.is_nested or x.dim() == 2:
        return None
    if x.layout != torch.strided or x.device != block.packed.device:
        kind = str(x.layout).removeprefix("torch.")
        return f"expected a dense tensor on {block.packed.device}, got a {kind} one on {x.device}; convert it"
    if x.dtype not in DTYPES.values():
        return f"expected x in {', '.join(DTYPES)}, got {x.dtype}; convert it with x.float()"
    if x.dim() != 3 or x.shape[-1] != hidden:
        return f"expected x [batch, tokens, {hidden}], got {list(x.shape)}; the last dimension must be {hidden}"
    return None


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

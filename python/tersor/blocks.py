"""Finding the encoder blocks of a model, and deciding which of them can run in one call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tersor import modules
from tersor.encoder.family import argument_names
from tersor.encoder.masks import recognise
from tersor.encoder.probe import PROBE, Found
from tersor.modules import READ_BY_ATTENTION
from tersor.selection import Choice

USUAL_SHAPES = ((1, 16), (1, 128))
"""Sequences and tokens that a block is judged for where nothing better is known."""

_FEWEST_LINEARS = 4  # of a module that may be a block of a form that is not known


@dataclass
class Block:
    """An encoder block of a model.

    Attributes:
        names: its qualified names.
        module: the float block.
        found: its family and parts.
        members: what was decided about its linear layers, by their path below it.
        shapes: the sequences and tokens that it was given.
        reason: why its layers stay apart; None as long as nothing speaks against one call.
    """

    names: tuple[str, ...]
    module: nn.Module
    found: Found
    members: dict[str, Choice] = field(default_factory=dict)
    shapes: set[tuple[int, int]] = field(default_factory=set)
    reason: str | None = None

    @property
    def name(self) -> str:
        """The first name, or ``(model)`` for the root."""
        return self.names[0] or "(model)"

    @property
    def swapped(self) -> dict[str, Choice]:
        """The members that become layers; the others belong to an nn.MultiheadAttention."""
        return {path: choice for path, choice in self.members.items() if choice.reason is None}


@dataclass
class Blocks:
    """The encoder blocks of a model, and why other modules that look like some are none."""

    blocks: list[Block] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)

    def close(self, reason: str) -> None:
        """Close all that are open."""
        for block in self.open:
            block.reason = reason

    @property
    def open(self) -> list[Block]:
        """Those that nothing speaks against so far."""
        return [block for block in self.blocks if block.reason is None]


def find_blocks(model: nn.Module, choices: Sequence[Choice]) -> Blocks:
    """Every encoder block of ``model``, with what was decided about its layers so far."""
    result, found = Blocks(), dict[int, Block]()
    by_layer = {id(choice.candidate.module): choice for choice in choices}
    inside: set[int] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in found:
            found[id(module)].names += (name,)
        elif id(module) not in inside and not isinstance(module, modules.accelerated_types()):
            try:
                what = PROBE.look(module)
            except ValueError as error:
                result.others[name] = f"{type(module).__name__}: {error}"
                inside |= {id(part) for part in module.modules()}
                continue
            if what is not None:
                block = found[id(module)] = Block((name,), module, what)
                block.members = _members(block, by_layer)
                inside |= {id(part) for part in module.modules()}
    result.blocks = list(found.values())
    result.others |= _unknown(model, inside)
    return result


def _members(block: Block, by_layer: dict[int, Choice]) -> dict[str, Choice]:
    paths = {path: block.module.get_submodule(path) for path in block.found.anatomy.linears}
    return {path: by_layer[id(layer)] for path, layer in paths.items() if id(layer) in by_layer}


def _unknown(model: nn.Module, inside: set[int]) -> dict[str, str]:
    """Modules in lists that hold several linear layers and are no block that is known."""
    unknown = {}
    for name, module in model.named_modules():
        for index, child in enumerate(module if isinstance(module, nn.ModuleList) else ()):
            linears = [part for part in child.modules() if type(part) in modules.linear_types()]
            if len(linears) >= _FEWEST_LINEARS and not any(id(part) in inside for part in child.modules()):
                unknown[f"{name}.{index}"] = f"{type(child).__name__}: no known form of encoder block"
    within = {name for name in unknown if any(name.startswith(f"{other}.") for other in unknown)}
    return {name: why for name, why in unknown.items() if name not in within}


@contextlib.contextmanager
def watching(blocks: Iterable[Block]) -> Iterator[None]:
    """Note what the blocks are given while their model runs; one that is given more than x and padding is closed."""
    with contextlib.ExitStack() as stack:
        for block in blocks:
            hook = _noting(block)
            stack.callback(block.module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True).remove)
        yield


def _noting(block: Block) -> Any:
    family, names = block.found.family, argument_names(type(block.module))

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = family.read(names, args, kwargs)
        if call is None:
            block.reason = "it is called for more than its output, or with a mask of every query's own"
        elif call.x.is_nested or call.x.dim() != 3:
            block.reason = "its input is not [batch, tokens, hidden]"
        elif recognise(call.x, call.mask, call.score_bias, family.true_is_kept) is None:
            block.reason = "its attention mask is about more than padding"
        elif call.x.numel():
            block.shapes.add((call.x.shape[0], call.x.shape[1]))

    return note


def close_unfit(blocks: Blocks) -> None:
    """Close the blocks of which not every layer is swapped for an int8 one that measures its own ranges."""
    for block in blocks.open:
        block.reason = _unfit(block)


def _unfit(block: Block) -> str | None:
    if block.names[0] == "":
        return "it is the model itself"
    for path, choice in block.members.items():
        own = choice.reason == READ_BY_ATTENTION and len(block.found.anatomy.qkv) == 1
        if choice.reason is not None and not own:
            return f"not all of its layers are swapped: {path}: {choice.reason}"
        if choice.x_scale:
            return "its layers have static ranges"
        if choice.kind in ("sparse", "lowrank"):
            return "its layers are not quantised"
    if set(block.members) != set(block.found.anatomy.linears):
        return "some of its layers are no candidates"
    for name, tensor in block.module.named_parameters():
        if tensor.dtype not in modules.DTYPES or tensor.device.type != "cpu":
            return f"its {name} is {tensor.dtype} on {tensor.device}"
        if not bool(torch.isfinite(tensor).all()):
            return f"its {name} holds NaN or infinity"
    return None

"""The edit that takes blocks out of a stack, and what counts them along."""

from __future__ import annotations

from typing import Any

from torch import nn

from tersor.checkpoint.strict_json import show
from tersor.errors import StructureError
from tersor.structure import checks
from tersor.structure.registry import register_edit

# Attributes that count the blocks of a stack, in the configurations of transformers and in modules.
_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_ENCODER_COUNTS = ("encoder_layers", "num_encoder_layers", *_COUNTS)
_DECODER_COUNTS = ("decoder_layers", "num_decoder_layers", *_COUNTS)
_LISTS = ("layer_types", "mlp_layer_types", "attention_layers")


@register_edit("drop_blocks")
def drop_blocks(model: nn.Module, config: dict[str, Any]) -> None:
    """``{"stack": NAME, "drop": [index, ...]}``: takes blocks out of an ``nn.ModuleList`` or ``nn.Sequential``.

    The blocks that stay are numbered anew; so is the ``layer_idx`` inside them, by which models of transformers find
    their place in a cache. The number of blocks in the nearest ``config``, and in the module around the stack, follows.
    """
    checks.keys(config, {"stack", "drop"})
    name = config["stack"]
    stack = checks.submodule(model, name)
    if not isinstance(stack, (nn.ModuleList, nn.Sequential)):
        raise StructureError(f"{show(name)} is a {type(stack).__name__}, not an nn.ModuleList or nn.Sequential")
    count = len(stack)
    dropped = set(checks.indices(config["drop"], "drop", count))
    if not 0 < len(dropped) < count:
        raise StructureError(f"{len(dropped)} of the {count} blocks of {show(name)}: drop some, and not all")
    kept = [(index, *item) for index, item in enumerate(stack._modules.items()) if index not in dropped]
    numbered = list(stack._modules) == [str(index) for index in range(count)]
    stack._modules = {str(new) if numbered else key: block for new, (_, key, block) in enumerate(kept)}
    for new, (old, _, block) in enumerate(kept):
        _renumber(block, old, new)
    _count_anew(model, name, count, [index for index, _, _ in kept])


def _renumber(block: nn.Module | None, old: int, new: int) -> None:
    for module in block.modules() if block is not None else ():
        if module.__dict__.get("layer_idx") == old:
            module.__dict__["layer_idx"] = new


def _count_anew(model: nn.Module, name: str, count: int, kept: list[int]) -> None:
    parts = name.split(".") if name else []
    above = [checks.submodule(model, ".".join(parts[:end])) for end in range(len(parts))]
    names = _DECODER_COUNTS if any("decoder" in part for part in parts) else _ENCODER_COUNTS
    for module in reversed(above):
        config = module.__dict__.get("config")
        if config is not None and _set_counts(vars(config), names, count, kept):
            break
    if above:
        _set_counts(above[-1].__dict__, names, count, kept)


def _set_counts(values: dict[str, Any], names: tuple[str, ...], count: int, kept: list[int]) -> bool:
    """Whether one of ``names`` was the number of blocks."""
    key = next((key for key in names if type(values.get(key)) is int and values[key] == count), None)
    if key is None:
        return False
    values[key] = len(kept)
    for key in _LISTS:
        if isinstance(values.get(key), list) and len(values[key]) == count:
            values[key] = [values[key][index] for index in kept]
    return True

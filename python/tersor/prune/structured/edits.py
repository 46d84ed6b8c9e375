"""From units to remove to one structure edit, and the check that it did what the trace foresaw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tersor import structure
from tersor.errors import PruneError
from tersor.prune.structured.groups import Group, kept, predicted
from tersor.prune.structured.indices import Ids
from tersor.prune.structured.shape_rules import HEADS
from tersor.prune.structured.trace import Coupling, Where, trace
from tersor.structure.generic import model_config
from tersor.structure.narrow import to_mask

_HEADS = (*HEADS, "encoder_attention_heads", "decoder_attention_heads")
_FFN = ("intermediate_size", "d_ff", "ffn_dim", "n_inner", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim")
_WIDTH = ("hidden_size", "n_embd", "d_model", "dim", "embedding_size")


def make_edit(model: nn.Module, coupling: Coupling, removed: Ids, groups: Sequence[Group]) -> dict[str, Any]:
    """The configuration of the edit ``narrow`` that removes these classes from every tensor that has a part of them."""
    keeps: dict[str, int] = {}
    cuts: dict[str, dict[str, int]] = {}
    for (name, dim), axis in coupling.axes.items():
        stay = kept(coupling, axis, removed)
        if len(stay) < len(axis):
            mask = to_mask(stay, len(axis))
            cuts.setdefault(name, {})[str(dim)] = keeps.setdefault(mask, len(keeps))
    attributes: dict[str, dict[str, int]] = {}
    for note in coupling.attributes:
        size = len(kept(coupling, note.axis, removed))
        if size < len(note.axis):
            attributes.setdefault(note.module, {})[note.key] = size
    return {
        "keeps": list(keeps),
        "cuts": cuts,
        "modules": attributes,
        "config": _config_fields(model, coupling, removed, groups),
    }


def _config_fields(model: nn.Module, coupling: Coupling, removed: Ids, groups: Sequence[Group]) -> dict[str, int]:
    """Fields of a transformers configuration whose value was the size of all groups of a kind, and is again."""
    config = model_config(model)
    if config is None:
        return {}
    fields: dict[str, int] = {}
    for kind, keys in {"heads": _HEADS, "neurons": _FFN, "width": _WIDTH}.items():
        size = _head_size(config) if kind == "heads" else 1
        places = [where for group in groups if group.kind == kind for where in group.places]
        for key in keys:
            value = vars(config).get(key)
            found = _sizes(coupling, removed, places, value, size) if type(value) is int and size else set()
            if len(found) == 1 and (new := found.pop()) != value:
                fields[key] = new
    return fields


def _sizes(coupling: Coupling, removed: Ids, places: Sequence[Where], value: int, size: int) -> set[int]:
    """What ``value`` becomes, by each place of ``value`` times ``size`` entries, or thrice that (q, k, v)."""
    found = set()
    for where in places:
        axis = coupling.axes[where]
        for parts in (1, 3):
            if len(axis) == value * size * parts:
                found.add(len(kept(coupling, axis, removed)) // (size * parts))
    return found


def _head_size(config: Any) -> int:
    """The size of one attention head by a configuration; 0 where it does not say."""
    for key in ("head_dim", "d_kv"):
        if type(getattr(config, key, None)) is int:
            return int(getattr(config, key))
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    return width // heads if type(width) is int and type(heads) is int and heads > 0 else 0


def apply(model: nn.Module, coupling: Coupling, removed: Ids, groups: Sequence[Group], inputs: Any) -> None:
    """Removes the classes and runs the example input; if anything is not as foreseen, the model is as before.

    Raises:
        PruneError: the model failed, or an operation has other shapes than the trace foresaw.
    """
    saved = structure.Snapshot(model)
    try:
        structure.edit(model, "narrow", make_edit(model, coupling, removed, groups))
        _check(model, coupling, removed, inputs)
    except Exception as error:
        saved.restore()
        raise PruneError(f"{type(error).__name__}: {error}") from error


def _check(model: nn.Module, coupling: Coupling, removed: Ids, inputs: Any) -> None:
    again = trace(model, inputs).products
    if [product.name for product in again] != [product.name for product in coupling.products]:
        raise PruneError("the model takes another way through its code")
    for product, before in zip(again, coupling.products, strict=True):
        got = [tuple(size if isinstance(size, int) else len(size) for size in shape) for shape in product.shapes]
        foreseen = [predicted(coupling, shape, removed) for shape in before.shapes]
        if got != foreseen:
            raise PruneError(f"a {product.name} has the shapes {got}, expected {foreseen}")

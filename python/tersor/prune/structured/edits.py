"""From units to remove to one structure edit, and the check that it did what the trace foresaw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from tersor import structure
from tersor.errors import PruneError
from tersor.prune.structured.groups import Group, kept, predicted
from tersor.prune.structured.indices import Ids
from tersor.prune.structured.shape_rules import HEADS
from tersor.prune.structured.trace import Coupling, trace
from tersor.structure.generic import model_config
from tersor.structure.narrow import to_mask

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
    names = {"heads": HEADS, "neurons": _FFN, "width": _WIDTH}
    for kind, keys in names.items():
        for key in keys:
            value = vars(config).get(key)
            axes = [axis for group in groups if group.kind == kind for axis in _sized(coupling, group, key, value)]
            sizes = {len(kept(coupling, axis, removed)) for axis in axes}
            if len(sizes) == 1 and (size := sizes.pop()) != value:
                fields[key] = size
    return fields


def _sized(coupling: Coupling, group: Group, key: str, value: Any) -> list[Ids]:
    """The axes of a group that have this many entries; for heads, those that a module counts under that name."""
    if group.kind == "heads":
        notes = [note.axis for note in coupling.attributes if note.key in HEADS and len(note.axis) == value]
        kv = "key_value" in key or "kv" in key
        owned = [axis for axis in notes if np.isin(coupling.indices.find(axis), group.units).all()]
        units = [group.units] if not owned and not kv and len(group.units) == value else []
        return owned or units
    return [coupling.axes[where] for where in group.places if len(coupling.axes[where]) == value]


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

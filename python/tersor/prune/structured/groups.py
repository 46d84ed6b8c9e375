"""What can be removed: groups of units, each a channel, a neuron or a head with everything that goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from tersor.prune.structured.indices import Ids, Indices
from tersor.prune.structured.trace import Coupling, Where

_KINDS = ("heads", "width", "units", "channels", "neurons")  # the first of those that its layers suggest counts


@dataclass
class Group:
    """Units that are made by the same layers.

    Attributes:
        name: the first layer that makes them.
        layers: all layers that make them.
        kind: ``"channels"`` of convolutions, ``"neurons"`` of linear layers, ``"heads"``, ``"units"`` of recurrent
            layers, ``"width"``: what embeddings make.
        units: the number that stands for each unit, in the order of the first layer's outputs.
        width: how many outputs of a layer one unit has at most; 64 for a head of 64.
        places: the dimensions of parameters that make them.
    """

    name: str
    layers: tuple[str, ...]
    kind: str
    units: Ids
    width: int
    places: list[Where] = field(default_factory=list)


def find_groups(model: nn.Module, coupling: Coupling) -> tuple[list[Group], dict[str, str]]:
    """The groups in the order of the model's modules, and why other layers keep all of their outputs."""
    ids, together = coupling.indices, Indices()
    together.fresh(len(ids))
    modules = dict(model.named_modules())
    fixed: dict[str, str] = {}
    members: dict[Where, Ids] = {}
    for where in _in_order(modules, coupling):
        axis = coupling.axes[where]
        roots = ids.find(axis)
        free = roots[~ids.pinned(axis)]
        if not len(free) or len(np.unique(roots)) == 1:
            fixed.setdefault(coupling.producers[where], ids.reason(axis) or "it is one unit")
            continue
        members[where] = free
        together.unite(np.full_like(free, free[0]), free)
    heads = np.concatenate([np.zeros(0, dtype=np.int64), *map(ids.find, coupling.heads)])
    groups: dict[int, Group] = {}
    for where, free in members.items():
        key = int(together.find(free[:1])[0])
        layer = coupling.producers[where]
        units = free[np.sort(np.unique(free, return_index=True)[1])]
        width = int(np.unique(free, return_counts=True)[1].max())
        kind = "heads" if np.isin(units, heads).any() else _kind(modules[layer])
        if key not in groups:
            groups[key] = Group(layer, (layer,), kind, units, width, [where])
            continue
        group = groups[key]
        group.units = np.concatenate([group.units, units[~np.isin(units, group.units)]])
        group.width = max(group.width, width)
        group.places.append(where)
        if layer not in group.layers:
            group.layers = (*group.layers, layer)
        group.kind = min(group.kind, kind, key=_KINDS.index)
    found = list(groups.values())
    making = {layer for group in found for layer in group.layers}
    return found, {layer: reason for layer, reason in fixed.items() if layer not in making}


def _in_order(modules: dict[str, nn.Module], coupling: Coupling) -> Sequence[Where]:
    order = {name: place for place, name in enumerate(modules)}
    return sorted(coupling.producers, key=lambda where: (order[coupling.producers[where]], where[1]))


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Embedding):
        return "width"
    if isinstance(module, nn.RNNBase):
        return "units"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "channels"
    return "neurons"


def kept(coupling: Coupling, axis: Ids, removed: Ids) -> list[int]:
    """The entries of an axis that stay."""
    return [int(i) for i in np.flatnonzero(~np.isin(coupling.indices.find(axis), removed))]


def predicted(coupling: Coupling, sizes: Sequence[int | Ids], removed: Ids) -> tuple[int, ...]:
    """Sizes once these classes are removed."""
    return tuple(size if isinstance(size, int) else len(kept(coupling, size, removed)) for size in sizes)


def work(coupling: Coupling, removed: Ids) -> int:
    """Multiplications and additions of one run, two operations for a pair."""
    total = 0
    for product in coupling.products:
        factors = predicted(coupling, product.work, removed)
        amount = 2
        for factor in factors:
            amount *= factor
        total += amount
    return total


def parameters(model: nn.Module, coupling: Coupling, removed: Ids) -> int:
    """Values of parameters that stay."""
    total = 0
    for name, tensor in model.named_parameters():
        count = 1
        for dim, size in enumerate(tensor.shape):
            axis = coupling.axes.get((name, dim))
            count *= size if axis is None else len(kept(coupling, axis, removed))
        total += count
    return total

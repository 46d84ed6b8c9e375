"""What each unit is worth, by the criteria of the registry."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tersor.prune.calibration import Calibration, gather
from tersor.prune.criteria import Criterion
from tersor.prune.layers import PrunableLayer
from tersor.prune.structured.groups import Group
from tersor.prune.structured.indices import Ids
from tersor.prune.structured.trace import Coupling

Scores = dict[int, float]
"""By the number of a unit."""


def score_units(
    model: nn.Module, coupling: Coupling, groups: Sequence[Group], criterion: Criterion, data: Calibration | None
) -> list[NDArray[np.float64]]:
    """The scores of the units of each group, in their order.

    A criterion scores every weight. A unit gets the sum over its weights: those that make it, or, with a criterion
    that looks at inputs, those that read it, since their scores hold what the unit's values are like. Each layer's sums
    are divided by their mean, and those of several layers averaged, unless the criterion compares over all layers.
    """
    layers = _layers(model, coupling, groups)
    total: dict[int, list[float]] = {}
    for portion in gather(model, list(layers), criterion, data):
        for layer, statistics in portion:
            found = criterion.scores(layer, statistics)
            for ids, values in _sums(coupling, layer, found, reads=criterion.needs == "inputs"):
                _add(coupling, total, ids, values, relative=criterion.scope != "global")
    return [_of_group(model, coupling, group, total) for group in groups]


def _layers(model: nn.Module, coupling: Coupling, groups: Sequence[Group]) -> list[PrunableLayer]:
    """The linear and convolution layers that make or read a unit of these groups."""
    units = np.concatenate([group.units for group in groups]) if groups else np.zeros(0, dtype=np.int64)
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    types = (nn.Linear, nn.Conv1d, nn.Conv2d) if conv1d is None else (nn.Linear, nn.Conv1d, nn.Conv2d, conv1d)
    found: dict[int, PrunableLayer] = {}
    for where, name in [*coupling.producers.items(), *coupling.consumers.items()]:
        module = model.get_submodule(name)
        weight = module._parameters.get("weight")
        touched = np.isin(coupling.indices.find(coupling.axes[where]), units).any()
        if type(module) in types and weight is not None and touched:
            found.setdefault(id(module), PrunableLayer(name, module, conv1d is not None and type(module) is conv1d))
    return list(found.values())


def _sums(
    coupling: Coupling, layer: PrunableLayer, scores: Tensor, *, reads: bool
) -> list[tuple[Ids, NDArray[np.float64]]]:
    """(numbers, sums of scores) of the rows or of the columns of a layer."""
    prefix = f"{layer.name}." if layer.name != "(model)" else ""
    rows = coupling.axes.get((f"{prefix}weight", 1 if layer.transposed else 0))
    columns = coupling.axes.get((f"{prefix}weight", 0 if layer.transposed else 1))
    by_row = scores.double().sum(1)
    if not reads or (layer.groups > 1 and columns is None):  # a depthwise channel is both
        return [] if rows is None else [(rows, by_row.numpy())]
    if columns is None:
        return []
    by_column = scores.double().sum(0).reshape(len(columns), -1).sum(1)  # over the places of the kernel
    return [(columns, by_column.numpy())]


def _add(
    coupling: Coupling, total: dict[int, list[float]], ids: Ids, values: NDArray[np.float64], *, relative: bool
) -> None:
    roots, places = np.unique(coupling.indices.find(ids), return_inverse=True)
    sums: NDArray[np.float64] = np.bincount(places, weights=values, minlength=len(roots)).astype(np.float64)
    mean = float(sums.mean())
    if relative and mean > 0:
        sums = sums / mean
    for root, value in zip(roots, sums, strict=True):
        total.setdefault(int(root), []).append(float(value))


def _of_group(model: nn.Module, coupling: Coupling, group: Group, total: dict[int, list[float]]) -> NDArray[np.float64]:
    if all(int(unit) in total for unit in group.units):
        return np.array([np.mean(total[int(unit)]) for unit in group.units])
    return _by_size(model, coupling, group)


@torch.no_grad()
def _by_size(model: nn.Module, coupling: Coupling, group: Group) -> NDArray[np.float64]:
    """For what no criterion sees, such as recurrent layers: the sum of the absolute weights that make a unit."""
    own: dict[int, list[float]] = {}
    tensors = dict(model.named_parameters())
    for name, dim in group.places:
        values = tensors[name].detach().double().abs().movedim(dim, 0).flatten(1).sum(1).numpy()
        _add(coupling, own, coupling.axes[name, dim], values, relative=True)
    return np.array([np.mean(own[int(unit)]) for unit in group.units])

"""Which units of a network run together as one int8 graph: chains and nets of them with one input and one result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tersor.convnet.units import Unit

Quantization = tuple[float, int]


@dataclass
class Segment:
    """Units that become one int8 graph; `source` is the node that it reads."""

    units: list[Unit]
    source: fx.Node

    @property
    def result(self) -> fx.Node:
        """The node whose value it gives."""
        return self.units[-1].value

    @property
    def nodes(self) -> list[fx.Node]:
        """All nodes that it stands for."""
        return [node for unit in self.units for node in unit.nodes]

    def observed(self) -> list[fx.Node]:
        """The nodes whose ranges it needs."""
        return [self.source, *(unit.value for unit in self.units if unit.kind != "same")]


def find_segments(units: Sequence[Unit], shapes: Mapping[fx.Node, torch.Size]) -> list[Segment]:
    """As long ones as there are, in the order of the network. Units outside get a reason."""
    found: list[Segment] = []
    begin = 0
    while begin < len(units):
        segment = _longest(units[begin:], shapes)
        if segment is None:
            unit = units[begin]
            if unit.kind != "float":
                unit.reason = "stands alone between float operations"
            begin += 1
        else:
            found.append(segment)
            begin += len(segment.units)
    return found


def _longest(units: Sequence[Unit], shapes: Mapping[fx.Node, torch.Size]) -> Segment | None:
    source = units[0].inputs[0] if units[0].inputs else None
    if units[0].kind == "float" or source is None or len(shapes[source]) != 4:
        return None
    known = {source}
    fitting: list[Unit] = []
    for unit in units:
        if unit.kind == "float" or any(node not in known for node in unit.inputs):
            break
        fitting.append(unit)
        known.add(unit.value)
    for length in range(len(fitting), 0, -1):
        segment = Segment(fitting[:length], source)
        if any(unit.kind == "conv" for unit in segment.units) and _closed(segment, shapes):
            return segment
    return None


def _closed(segment: Segment, shapes: Mapping[fx.Node, torch.Size]) -> bool:
    """Nothing but the result is read outside, and a graph can give it: as a picture, or flat if it is one pixel."""
    inside = set(segment.nodes)
    read = {unit.value for unit in segment.units if any(user not in inside for user in unit.value.users)}
    if read != {segment.result}:
        return False
    last = segment.units[-1]
    if not last.flat:
        return len(shapes[segment.result]) == 4
    return last.kind != "same" or tuple(shapes[last.inputs[0]][2:]) in ((), (1, 1))


def graph_of(
    segment: Segment,
    shapes: Mapping[fx.Node, torch.Size],
    ranges: Mapping[fx.Node, Quantization],
    filters: Mapping[fx.Node, tuple[Tensor, Tensor, Tensor]],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and tensors of a segment's int8 graph."""
    values = {segment.source: 0}
    nodes: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for unit in segment.units:
        if unit.kind == "same":
            values[unit.value] = values[unit.inputs[0]]
            continue
        read = [values[node] for node in unit.inputs]
        if unit.conv is not None:
            for name, tensor in zip(("weight_q", "weight_scale", "bias"), filters[unit.value], strict=True):
                tensors[f"{len(nodes)}_{name}"] = tensor
        nodes.append(_node(unit, read, ranges[unit.value]))
        values[unit.value] = len(nodes)
    if nodes[-1]["kind"] == "pool":  # what comes out is floats: an addition of nothing
        nodes.append(_node(Unit("add", [], []), [len(nodes)], ranges[segment.result]))
    config = {
        "channels": shapes[segment.source][1],
        "input": list(ranges[segment.source]),
        "nodes": nodes,
        "flat": segment.units[-1].flat,
        "dtype": "float32",
    }
    return config, tensors


def _node(unit: Unit, read: list[int], quantization: Quantization) -> dict[str, Any]:
    shape = [1] * 9 + [0] * 4
    if unit.conv is not None:
        conv = unit.conv
        out, deep, *kernel = conv.weight.shape
        shape = [deep * conv.groups, out, conv.groups, *kernel, *conv.stride, *conv.dilation, *conv.pads]
    elif unit.pool is not None and not unit.pool.whole:
        shape = [1, 1, 1, *unit.pool.kernel, *unit.pool.stride, 1, 1, *unit.pool.pads]
    return {
        "kind": unit.kind,
        "input": read[0],
        "other": read[1] if len(read) > 1 else -1,
        "activation": unit.activation,
        "pooling": unit.pool.pooling if unit.pool is not None else "max",
        "whole": unit.pool is not None and unit.pool.whole,
        "as": list(quantization),
        "shape": shape,
        "bias": unit.kind == "conv",
    }

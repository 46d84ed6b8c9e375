"""The operations of a traced network, fused: a convolution takes its padding, batch norm, summand and activation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from tersor.convnet.operations import Activation, Add, Conv, Flatten, Linear, Norm, Op, Pad, Pool, Same
from tersor.convnet.recognise import recognise


@dataclass
class Unit:
    """What becomes one node of an int8 graph, or stays float.

    Attributes:
        kind: "conv", "pool", "add", "same" (no node: the value passes through) or "float".
        nodes: the nodes that it stands for; the last one gives its value.
        inputs: the nodes that it reads; of a conv or an add the second one is the summand.
        reason: why it stays float.
    """

    kind: str
    nodes: list[fx.Node]
    inputs: list[fx.Node]
    conv: Conv | None = None
    pool: Pool | None = None
    activation: str = "none"
    flat: bool = False
    reason: str = ""

    @property
    def value(self) -> fx.Node:
        """The node whose value it gives."""
        return self.nodes[-1]

    def open(self) -> bool:
        """Whether a summand or an activation can still become part of it."""
        return self.kind in ("conv", "add") and self.activation == "none" and len(self.value.users) == 1


@dataclass
class _Builder:
    modules: dict[str, nn.Module]
    model: nn.Module
    shapes: Mapping[fx.Node, torch.Size]
    excluded: Callable[[str], bool]
    units: list[Unit] = field(default_factory=list)
    of: dict[fx.Node, Unit] = field(default_factory=dict)  # by value
    pads: dict[fx.Node, tuple[Pad, fx.Node]] = field(default_factory=dict)

    def add(self, unit: Unit) -> None:
        self.units.append(unit)
        self.of[unit.value] = unit

    def extend(self, unit: Unit, node: fx.Node) -> None:
        """`node` becomes part of a unit, which moves to the place of `node`."""
        del self.of[unit.value]
        self.units.remove(unit)
        unit.nodes.append(node)
        self.add(unit)

    def float(self, node: fx.Node, reason: str) -> None:
        inputs = list(node.all_input_nodes)
        self.add(Unit("float", [node], inputs, reason=reason))

    def see(self, node: fx.Node) -> None:
        if self.excluded(_owner(node)):
            self.float(node, "excluded by the recipe")
            return
        found = recognise(node, self.modules, self.model)
        if found is None:
            what = type(self.modules[str(node.target)]).__name__ if node.op == "call_module" else _target(node)
            self.float(node, f"{what} has no int8 form")
            return
        op, inputs = found
        if not inputs or any(item not in self.shapes for item in inputs):
            self.float(node, "it reads something that is not a tensor")
            return
        self.take(node, op, inputs)

    def take(self, node: fx.Node, op: Op, inputs: list[fx.Node]) -> None:
        before = self.of.get(inputs[0])
        match op:
            case Pad():
                self.pads[node] = (op, inputs[0])
                self.float(node, "a padding that no convolution takes in")
            case Conv():
                self.conv(node, op, inputs[0])
            case Norm():
                self.norm(node, op, inputs[0])
            case Linear():
                self.linear(node, op, inputs[0])
            case Activation() if before is not None and before.open():
                before.activation = op.name
                self.extend(before, node)
            case Activation():
                self.add(Unit("add", [node], inputs, activation=op.name, flat=self.is_flat(inputs[0])))
            case Pool():
                self.add(Unit("pool", [node], inputs, pool=op))
            case Same():
                self.add(Unit("same", [node], inputs, flat=self.is_flat(inputs[0])))
            case Flatten():
                self.add(Unit("same", [node], inputs, flat=True))
            case Add():
                self.sum(node, inputs)

    def is_flat(self, node: fx.Node) -> bool:
        return node in self.of and self.of[node].flat

    def conv(self, node: fx.Node, op: Conv, source: fx.Node) -> None:
        nodes = [node]
        if source in self.pads and len(source.users) == 1:
            pad, before = self.pads.pop(source)
            top, left, bottom, right = (one + other for one, other in zip(op.pads, pad.pads, strict=True))
            op = dataclasses.replace(op, pads=(top, left, bottom, right))
            self.units.remove(self.of.pop(source))
            nodes, source = [source, node], before
        self.add(Unit("conv", nodes, [source], conv=op))

    def norm(self, node: fx.Node, op: Norm, source: fx.Node) -> None:
        unit = self.of.get(source)
        if unit is not None and unit.kind == "conv" and unit.open() and len(unit.inputs) == 1 and not unit.flat:
            unit.conv = fold(unit.conv, op)
            self.extend(unit, node)
            return
        # By itself it is a depthwise filter of one value.
        channels = len(op.scale)
        weight = op.scale.float().reshape(channels, 1, 1, 1)
        conv = Conv(weight, op.shift.float(), (1, 1), (0, 0, 0, 0), (1, 1), channels)
        self.add(Unit("conv", [node], [source], conv=conv))

    def linear(self, node: fx.Node, op: Linear, source: fx.Node) -> None:
        if not self.is_flat(source):
            self.float(node, "a linear layer that does not follow a convolution")
            return
        whole = self.picture(source)
        weight = op.weight.reshape(len(op.weight), *whole)
        conv = Conv(weight, op.bias, (1, 1), (0, 0, 0, 0), (1, 1), 1)
        self.add(Unit("conv", [node], [source], conv=conv, flat=True))

    def picture(self, node: fx.Node) -> tuple[int, int, int]:
        """Channels, height and width of what a flat value stands for."""
        unit = self.of[node]
        while unit.flat and unit.kind in ("same", "add") and len(self.shapes[unit.inputs[0]]) == 2:
            unit = self.of[unit.inputs[0]]
        shape = self.shapes[unit.inputs[0] if unit.kind == "same" else unit.value]
        channels, height, width = (*shape[1:], 1, 1)[:3]
        return channels, height, width

    def sum(self, node: fx.Node, inputs: list[fx.Node]) -> None:
        one, other = inputs
        if self.shapes[one] != self.shapes[other] or one is other:
            self.float(node, "a sum of tensors of different shapes, or of one with itself")
            return
        fits = [
            unit
            for unit in (self.of.get(one), self.of.get(other))
            if unit is not None and unit.kind == "conv" and unit.open() and len(unit.inputs) == 1
        ]
        if fits:
            unit = max(fits, key=self.units.index)  # the later one: the other summand is there already
            unit.inputs.append(other if unit.value is one else one)
            self.extend(unit, node)
            return
        self.add(Unit("add", [node], inputs, flat=self.is_flat(one)))


def build_units(
    traced: fx.GraphModule, shapes: Mapping[fx.Node, torch.Size], excluded: Callable[[str], bool]
) -> list[Unit]:
    """The units of a traced network in an order in which each reads only what comes before."""
    builder = _Builder(dict(traced.named_modules()), traced, shapes, excluded)
    for node in traced.graph.nodes:
        if node.op in ("call_module", "call_function", "call_method"):
            builder.see(node)
    return builder.units


def fold(conv: Conv | None, norm: Norm) -> Conv:
    """The convolution that a batch norm after `conv` makes of it."""
    assert conv is not None
    weight = (conv.weight.double() * norm.scale.reshape(-1, 1, 1, 1)).float()
    bias = norm.shift if conv.bias is None else norm.shift + conv.bias.detach().double() * norm.scale
    return dataclasses.replace(conv, weight=weight, bias=bias.float())


def _owner(node: fx.Node) -> str:
    """The qualified name of the module whose code made the node."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _target(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))

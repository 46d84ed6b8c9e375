"""Turning the convolutional parts of a model into int8 graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor import observe
from tersor.convnet.network import EDIT
from tersor.convnet.segments import Quantization, Segment, find_segments, graph_of
from tersor.convnet.trace import Watched, trace
from tersor.convnet.units import Unit, build_units
from tersor.errors import SwapError
from tersor.nn.int8_graph import Int8Graph
from tersor.progress import track
from tersor.quantize.observers import Observer, make_observer
from tersor.structure import edit


@dataclass
class Part:
    """A module of the model that could be traced.

    Attributes:
        path: its qualified name, "" for the model.
        calls: the inputs that a sample of the calibration data brought to it, a few of them.
    """

    path: str
    module: nn.Module
    traced: fx.GraphModule
    shapes: dict[fx.Node, torch.Size] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    ranges: dict[fx.Node, Quantization] = field(default_factory=dict)

    def islands(self) -> list[tuple[str, str]]:
        """What stays float, and why: (what, reason)."""
        inside = {unit.value for segment in self.segments for unit in segment.units}
        return [(_what(unit), unit.reason) for unit in self.units if unit.value not in inside]


@dataclass
class Converted:
    """What :func:`quantize_convnet` made.

    Attributes:
        parts: the traced parts of the model.
        untraced: modules with convolutions that could not be traced.
        graphs: the new graphs, by their qualified names.
    """

    parts: list[Part]
    untraced: list[str]
    graphs: dict[str, Int8Graph]


def quantize_convnet(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    observer: str = "minmax",
    selected: Callable[[str], bool] = lambda name: True,
    keep: Callable[[Part, Segment], bool] = lambda part, segment: True,
    progress: bool = False,
) -> Converted:
    """Put int8 graphs in the place of the convolutional parts of a model, in place, as a recorded edit.

    Batch norms are folded, convolutions fused with their padding, summand and activation, and what lies between them
    stays in bytes; quantisation stands where a float tensor enters a graph, and floats come out of it.

    Args:
        model: on the CPU; changed in place. Traced as a whole where torch.fx can, else in parts.
        calibration: inputs of the model; the ranges of all tensors are taken from them.
        observer: how a range is chosen, a name in ``tersor.quantize.observers.OBSERVERS``.
        selected: whether a module of this qualified name may change.
        keep: asked for each graph with what it stands for; where it says no, that stays float.
        progress: a progress bar on a terminal.

    Raises:
        SwapError: the model failed on the calibration data, or there was none.
        ValueError: an unknown observer.
    """
    batches = list(calibration)
    if not batches:
        raise SwapError("an int8 convolutional network needs calibration data; there was none")
    parts, untraced = find_parts(model)
    for part in parts:
        look(part, model, batches[:1], selected)
        measure(part, model, batches, observer, progress)
        part.segments = [segment for segment in part.segments if keep(part, segment)]
    graphs: dict[str, Int8Graph] = {}
    for part in parts:
        if part.segments:
            graphs |= install(model, part)
    return Converted(parts, untraced, graphs)


def find_parts(model: nn.Module) -> tuple[list[Part], list[str]]:
    """The outermost modules with convolutions that torch.fx can trace, and convolutions outside of them."""
    parts: list[Part] = []
    untraced: list[str] = []

    def visit(module: nn.Module, path: str) -> None:
        if not any(isinstance(inner, nn.Conv2d) for inner in module.modules()):
            return
        traced = None if isinstance(module, (nn.ModuleList, nn.ModuleDict)) else trace(module)
        if traced is not None:
            parts.append(Part(path, module, traced))
            return
        if isinstance(module, nn.Conv2d):
            untraced.append(path)
        for name, child in module.named_children():
            visit(child, f"{path}.{name}" if path else name)

    visit(model, "")
    return parts, untraced


def look(part: Part, model: nn.Module, batches: Sequence[Any], selected: Callable[[str], bool]) -> None:
    """Finds out the shapes in a part and what of it becomes int8 graphs."""

    def see(node: fx.Node, value: Tensor) -> None:
        part.shapes[node] = value.shape

    _run(part, model, batches, see, progress=False)
    prefix = f"{part.path}." if part.path else ""
    part.units = build_units(part.traced, part.shapes, lambda name: not selected(prefix + name))
    part.segments = find_segments(part.units, part.shapes)


def measure(part: Part, model: nn.Module, batches: Sequence[Any], observer: str, progress: bool) -> None:
    """Chooses the range of every tensor that will be bytes."""
    observers: dict[fx.Node, Observer] = {
        node: make_observer(observer) for segment in part.segments for node in segment.observed()
    }

    def see(node: fx.Node, value: Tensor) -> None:
        if node in observers:
            try:
                observers[node].add(value)
            except ValueError as error:
                raise SwapError(f"{part.path}: {node.name}: {error}") from error

    if observers:
        _run(part, model, batches, see, progress)
    for node, seen in observers.items():
        scale, zero_point = seen.quantization()
        part.ranges[node] = (max(float(scale), float(torch.finfo(torch.float32).tiny)), int(zero_point))


def install(model: nn.Module, part: Part) -> dict[str, Int8Graph]:
    """Makes the edit and fills the graphs; returns them by name."""
    made = [graph_of(segment, part.shapes, part.ranges) for segment in part.segments]
    described = [
        {
            "nodes": [node.name for node in segment.nodes],
            "source": segment.source.name,
            "result": segment.result.name,
            "graph": config,
        }
        for segment, (config, _) in zip(part.segments, made, strict=True)
    ]
    edit(model, EDIT, {"path": part.path, "segments": described})
    prefix = f"{part.path}.body" if part.path else "body"
    body = model.get_submodule(prefix)
    names = [prefix] if isinstance(body, Int8Graph) else [f"{prefix}.int8_{i}" for i in range(len(made))]
    graphs = {}
    for name, (_, tensors) in zip(names, made, strict=True):
        graph = model.get_submodule(name)
        assert isinstance(graph, Int8Graph)
        graph._tersor_name = name
        graph.fill(tensors)
        graphs[name] = graph
    return graphs


def _run(
    part: Part, model: nn.Module, batches: Sequence[Any], see: Callable[[fx.Node, Tensor], None], progress: bool
) -> None:
    """Runs the model; wherever it calls the part, the traced part runs as well and shows its tensors to `see`."""
    watched = Watched(part.traced, see)
    training = part.traced.training

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs:
            raise SwapError(f"{part.path or 'the model'} is called with keyword arguments; torch.fx needs places")
        with torch.no_grad():
            watched.run(*args)

    handle = part.module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        for position, batch in enumerate(track(batches, "calibrating convolutions", shown=progress)):
            observe.run(model, batch, f"calibration batch {position}")
    finally:
        handle.remove()
        part.traced.train(training)


def _what(unit: Unit) -> str:
    node = unit.nodes[0]
    return str(node.target) if node.op in ("call_module", "call_method") else node.name

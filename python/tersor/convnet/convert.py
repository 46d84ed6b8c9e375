"""Turning the convolutional parts of a model into int8 graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from tersor import observe
from tersor.convnet.correct import CORRECTIONS, rounded
from tersor.convnet.judge import compare, float_part
from tersor.convnet.measure import Measured, channel_peaks
from tersor.convnet.network import EDIT
from tersor.convnet.scaling import scale_channels
from tersor.convnet.segments import Quantization, Segment, find_segments, graph_of
from tersor.convnet.trace import Watched, trace
from tersor.convnet.units import Unit, build_units
from tersor.errors import SwapError
from tersor.nn.int8_graph import Int8Graph
from tersor.progress import track
from tersor.structure import edit
from tersor.tune import Verdict


@dataclass
class Graph:
    """An int8 graph and what it stands for.

    Attributes:
        name: its qualified name in the model; "" where it was not taken.
        verdict: the measured times; None where nothing was measured.
    """

    segment: Segment
    graph: Int8Graph
    name: str = ""
    verdict: Verdict | None = None

    @property
    def taken(self) -> bool:
        """Whether it runs in place of the float operations."""
        return self.verdict is None or self.verdict.faster


@dataclass
class Part:
    """A module of the model that could be traced.

    Attributes:
        path: its qualified name, "" for the model.
        shapes, samples: what flowed through it in the first batch; samples are what graphs would be given.
        units: its operations, fused.
        segments: which of them become graphs; `graphs` are those.
        ranges: scale and zero point of what becomes bytes.
        filters: of each convolution, as int8, with scales and bias.
    """

    path: str
    module: nn.Module
    traced: fx.GraphModule
    shapes: dict[fx.Node, torch.Size] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    samples: dict[fx.Node, Tensor] = field(default_factory=dict)
    graphs: list[Graph] = field(default_factory=list)
    ranges: dict[fx.Node, Quantization] = field(default_factory=dict)
    filters: dict[fx.Node, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def islands(self) -> list[tuple[str, str]]:
        """What stays float, and why: (what, reason)."""
        inside = {unit.value for made in self.graphs for unit in made.segment.units}
        return [(_what(unit), unit.reason) for unit in self.units if unit.value not in inside]


@dataclass(frozen=True)
class Settings:
    """See quantize_convnet."""

    smooth: float
    corrections: tuple[str, ...]


@dataclass
class Converted:
    """What :func:`quantize_convnet` made.

    Attributes:
        parts: the traced parts of the model.
        untraced: modules with convolutions that could not be traced.
    """

    parts: list[Part]
    untraced: list[str]

    @property
    def graphs(self) -> dict[str, Int8Graph]:
        """The graphs that run now, by their qualified names."""
        return {made.name: made.graph for part in self.parts for made in part.graphs if made.taken}


def quantize_convnet(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    observer: str = "minmax",
    smooth: float = 0.5,
    corrections: Sequence[str] = ("bias",),
    selected: Callable[[str], bool] = lambda name: True,
    force: bool = False,
    progress: bool = False,
) -> Converted:
    """Put int8 graphs in the place of the convolutional parts of a model, in place, as a recorded edit.

    Batch norms are folded, convolutions fused with their padding, summand and activation, and what lies between them
    stays in bytes; quantisation stands where a float tensor enters a graph, and floats come out of it.

    Args:
        model: on the CPU; changed in place. Traced as a whole where torch.fx can, else in parts.
        calibration: inputs of the model; the ranges of all tensors are taken from them.
        observer: how a range is chosen, a name in ``tersor.quantize.observers.OBSERVERS``.
        smooth: in [0, 1], how far channels of a tensor are made equally large at the cost of the weights that read it
            (`tersor.convnet.scaling`); 0 leaves them.
        corrections: names in `tersor.convnet.correct.CORRECTIONS`.
        selected: whether a module of this qualified name may change.
        force: take every graph without measuring whether it is faster than the float operations.
        progress: a progress bar on a terminal.

    Raises:
        SwapError: the model failed on the calibration data, or there was none.
        ValueError: an unknown observer or correction, or smooth outside [0, 1].
    """
    if not 0 <= smooth <= 1 or isinstance(corrections, str) or not set(corrections) <= set(CORRECTIONS):
        known = ", ".join(CORRECTIONS)
        raise ValueError(f"expected smooth in [0, 1] and corrections among {known}, got {smooth!r}, {corrections!r}")
    batches = calibration if iter(calibration) is not calibration else list(calibration)
    first = next(iter(batches), None)
    if first is None:
        raise SwapError("an int8 convolutional network needs calibration data; there was none")
    parts, untraced = find_parts(model)
    for part in parts:
        look(part, model, first, selected)
        measure(part, model, batches, observer, Settings(smooth, tuple(corrections)), progress)
        for segment in part.segments:
            config, tensors = graph_of(segment, part.shapes, part.ranges, part.filters)
            made = Graph(segment, Int8Graph.from_config(config))
            made.graph.fill(tensors)
            if not force:
                made.verdict = compare(float_part(part.traced, segment), made.graph, part.samples[segment.source])
            part.graphs.append(made)
        part.samples.clear()
        part.filters.clear()
    for part in parts:
        if any(made.taken for made in part.graphs):
            install(model, part)
    return Converted(parts, untraced)


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


def look(part: Part, model: nn.Module, batch: Any, selected: Callable[[str], bool]) -> None:
    """Finds out the shapes in a part and what of it becomes int8 graphs."""

    def see(node: fx.Node, value: Tensor) -> None:
        part.shapes[node] = value.shape

    def sample(node: fx.Node, value: Tensor) -> None:
        if any(segment.source is node for segment in part.segments):
            part.samples[node] = value.clone()

    _run(part, model, [batch], see, progress=False)
    prefix = f"{part.path}." if part.path else ""
    part.units = build_units(part.traced, part.shapes, lambda name: not selected(prefix + name))
    part.segments = find_segments(part.units, part.shapes)
    _run(part, model, [batch], sample, progress=False)


def measure(
    part: Part, model: nn.Module, batches: Iterable[Any], observer: str, settings: Settings, progress: bool
) -> None:
    """Scales channels, chooses the range of every tensor that will be bytes, and rounds the filters."""
    if not part.segments:
        return

    def run(see: Callable[[fx.Node, Tensor], None]) -> None:
        _run(part, model, batches, see, progress)

    scales: dict[fx.Node, Tensor] = {}
    if settings.smooth > 0:
        peaks = channel_peaks(part.segments, run)
        for segment in part.segments:
            scales |= scale_channels(segment, peaks, settings.smooth)
    measured = Measured(part.segments, scales, observer, bool(settings.corrections), "gptq" in settings.corrections)
    run(lambda node, value: measured.see(part.path, node, value))
    part.ranges = measured.ranges()
    units = [unit for segment in part.segments for unit in segment.units]
    for unit in track(units, "rounding filters", shown=progress):
        if unit.conv is not None:
            moments = measured.moments.pop(unit.value, None)
            part.filters[unit.value] = rounded(unit.conv, moments, settings.corrections)


def install(model: nn.Module, part: Part) -> None:
    """Makes the edit and puts the graphs in place."""
    taken = [made for made in part.graphs if made.taken]
    described = [
        {
            "nodes": [node.name for node in made.segment.nodes],
            "source": made.segment.source.name,
            "result": made.segment.result.name,
            "graph": made.graph.config(),
        }
        for made in taken
    ]
    edit(model, EDIT, {"path": part.path, "segments": described})
    prefix = f"{part.path}.body" if part.path else "body"
    alone = isinstance(model.get_submodule(prefix), Int8Graph)
    for position, made in enumerate(taken):
        made.name = prefix if alone else f"{prefix}.int8_{position}"
        made.graph._tersor_name = made.name
        parent, _, key = made.name.rpartition(".")
        model.get_submodule(parent)._modules[key] = made.graph


def _run(
    part: Part, model: nn.Module, batches: Iterable[Any], see: Callable[[fx.Node, Tensor], None], progress: bool
) -> None:
    """Runs the model; wherever it calls the part, the traced part runs as well and shows its tensors to `see`."""
    watched = Watched(part.traced, see)
    training = part.traced.training
    position = 0

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs:
            raise SwapError(f"{part.path or 'the model'} is called with keyword arguments; torch.fx needs places")
        try:
            with torch.no_grad():
                watched.run(*args)
        except SwapError as error:
            raise SwapError(f"calibration batch {position}: {error}") from error

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

"""The report: one row per layer, totals, warnings."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

SCHEMA = "tersor.report/1"


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One linear layer, or one encoder block that is replaced as a whole.

    Attributes:
        name: qualified name; ``(model)`` for the root.
        kind: class name of the float layer.
        action: what became of it.
        reason: why.
        shape: (out_features, in_features); None where the layer has none.
        bytes_before, bytes_after: memory of weight, bias and packed weight.
        aliases: further names of the same instance.
        rows: numbers of input rows it was judged for; empty where it was not measured.
        float_us, tersor_us: measured microseconds per call by number of rows.
        rel_error: ``|y - y_float| / |y_float|`` (2-norms) on the example inputs; None where not measured.
        forced: swapped without asking whether it is faster.
        suggestion: what to do about a large error.
        layer: class name of the layer that replaces it; None where it is kept.
        pattern, sparsity: how the zeros of its weight lie, and their part of it; None where it was not pruned.
        form: how the kernel of a sparse int8 layer holds its weight.
        remark: what another pattern or sparsity would do, in words.
        parts: the products within it, where it is a whole encoder block.
        layers: how many linear layers of the float model it stands for.
    """

    name: str
    kind: str
    action: Literal["swapped", "kept"]
    reason: str
    shape: tuple[int, int] | None
    bytes_before: int
    bytes_after: int
    aliases: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    float_us: dict[int, float] = dataclasses.field(default_factory=dict)
    tersor_us: dict[int, float] = dataclasses.field(default_factory=dict)
    rel_error: float | None = None
    forced: bool = False
    suggestion: str | None = None
    layer: str | None = None
    pattern: str | None = None
    sparsity: float | None = None
    form: str | None = None
    remark: str | None = None
    parts: tuple[str, ...] = ()
    layers: int = 1


@dataclasses.dataclass(frozen=True)
class StepRow:
    """What the model costs after a step of the recipe; the first row is the float model.

    Attributes:
        name: of the step; ``"float"`` for the float model, ``"replace layers"`` for what comes last.
        parameters, nonzeros: of the model, shared ones counted once; those that are not zero.
        bytes: memory of all parameters and buffers.
        flops: floating-point operations of one call on the example inputs (integer ones in int8 layers); a sparse layer
            does not do those with zeros. None where there are no example inputs.
        ms, float_ms: milliseconds of one call, and of the float model's in turns with it; None where not measured.
        joules, float_joules: energy of the CPU packages, and of the GPU at work, for one call, and for one of the float
            model; None where the host can't tell.
        metric: of the user; None where there is none.
        seconds: that the step took; None where nothing is measured.
    """

    name: str
    parameters: int
    nonzeros: int
    bytes: int
    flops: int | None = None
    ms: float | None = None
    float_ms: float | None = None
    joules: float | None = None
    metric: float | None = None
    seconds: float | None = None
    float_joules: float | None = None


@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over the whole model.

    Attributes:
        parameters: parameters of the float model, shared ones counted once.
        bytes_before, bytes_after: memory of all parameters and buffers.
        swapped, kept: numbers of linear layers.
        output_error, output_cosine: the model's output against the float model's on the example inputs.
    """

    parameters: int
    bytes_before: int
    bytes_after: int
    swapped: int
    kept: int
    output_error: float | None = None
    output_cosine: float | None = None


@dataclasses.dataclass(frozen=True)
class Report:
    """What was done to a model, layer by layer.

    Attributes:
        rows: every linear layer in the model's order.
        totals: sums over the model.
        warnings: things to look into, such as a pattern that matched nothing.
        notes: things to know, such as a fused path that is off.
        host: versions, instruction set and threads that the times belong to.
        steps: the float model and what each step made of it.
    """

    rows: tuple[LayerRow, ...]
    totals: Totals
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    host: dict[str, str] = dataclasses.field(default_factory=dict)
    steps: tuple[StepRow, ...] = ()

    @property
    def swapped(self) -> list[LayerRow]:
        """The layers that run accelerated now."""
        return [row for row in self.rows if row.action == "swapped"]

    @property
    def kept(self) -> list[LayerRow]:
        """The layers that stayed float."""
        return [row for row in self.rows if row.action == "kept"]

    def worst(self, count: int | None = None) -> list[LayerRow]:
        """The swapped layers with a measured error, largest first, at most ``count``."""
        measured = [row for row in self.swapped if row.rel_error is not None]
        return sorted(measured, key=lambda row: -(row.rel_error or 0.0))[:count]

    def table(self, width: int = 100, color: bool = False) -> str:
        """The report as text. Layers that differ only in numbers within their names share a line.

        Args:
            width: columns to fit into.
            color: with ANSI colours.
        """
        from tersor.report.table import render

        return render(self, width, color)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a ``schema`` key; numbers that are not finite become None, times are keyed by rows."""
        data: dict[str, Any] = _plain(dataclasses.asdict(self))
        return {"schema": SCHEMA, **data}

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON text, also written to ``path`` where one is given."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def to_html(self, path: str | Path | None = None) -> str:
        """The report as one self-contained HTML page, also written to ``path`` where one is given."""
        from tersor.report.html import render

        text = render(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def __str__(self) -> str:
        return self.table()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

"""What each step made of the model: a table in text and in HTML, bars of size and time, accuracy against time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from rich.table import Table

from tersor import text
from tersor.report import wording
from tersor.report.report import Report, StepRow

COLUMNS = ("step", "parameters", "not zero", "memory", "operations", "ms", "speed", "energy", "metric", "took")


def cells(report: Report) -> list[list[str]]:
    """The texts of the table, a line for each step."""
    return [
        [
            row.name,
            f"{row.parameters:,}",
            f"{row.nonzeros:,}",
            wording.size(row.bytes),
            _operations(row.flops),
            _number(milliseconds(report, row)),
            "-" if row.ms is None or row.float_ms is None else f"{row.float_ms / row.ms:.2f}x",
            _energy(joules(report, row)),
            "-" if row.metric is None else f"{row.metric:.4g}",
            "-" if row.seconds is None else f"{row.seconds:.3g} s",
        ]
        for row in report.steps
    ]


def milliseconds(report: Report, row: StepRow) -> float | None:
    """Of one call, on the clock of the last step: what counts is the ratio to the float model at the same time."""
    last = next((later.float_ms for later in reversed(report.steps) if later.float_ms is not None), None)
    if row is report.steps[0] or last is None:
        return last
    return None if row.ms is None or not row.float_ms else last * row.ms / row.float_ms


def joules(report: Report, row: StepRow) -> float | None:
    """Of one call; those of the float model were measured beside the last step."""
    if row is not report.steps[0]:
        return row.joules
    return next((later.float_joules for later in reversed(report.steps) if later.float_joules is not None), None)


def totals(report: Report) -> list[str]:
    """The last line of the table: how many times less the model costs at the end, and what the metric lost."""
    first, last = report.steps[0], report.steps[-1]
    took = [row.seconds for row in report.steps if row.seconds is not None]
    return [
        "in total",
        _times(first.parameters, last.parameters),
        _times(first.nonzeros, last.nonzeros),
        _times(first.bytes, last.bytes),
        _times(first.flops, last.flops),
        "-",
        "-" if last.ms is None or last.float_ms is None else f"{last.float_ms / last.ms:.2f}x",
        "not available" if not last.float_joules or not last.joules else _times(last.float_joules, last.joules),
        "-" if first.metric is None or last.metric is None else f"{last.metric - first.metric:+.3g}",
        f"{sum(took):.3g} s" if took else "-",
    ]


def _times(before: float | None, after: float | None) -> str:
    return "-" if before is None or not after else f"{before / after:.2f}x"


def table(report: Report) -> Table:
    """The steps as a rich table; columns that no step fills are left out."""
    lines = [*cells(report), totals(report)]
    used = [index for index in range(len(COLUMNS)) if any(line[index] not in ("-", "not available") for line in lines)]
    made = text.plain_table(*(COLUMNS[index] for index in used))
    for line in lines:
        made.add_row(*(line[index] for index in used))
    return made


def html(report: Report) -> str:
    """Table and pictures as HTML; empty where the report has no steps."""
    if len(report.steps) < 2:
        return ""
    head = "".join(f"<th{'' if index == 0 else ' class=number'}>{title}</th>" for index, title in enumerate(COLUMNS))
    body = "\n".join(
        f"<tr{' class=total' if line[0] == 'in total' else ''}>"
        + "".join(f"<td{'' if at == 0 else ' class=number'}>{escape(cell)}</td>" for at, cell in enumerate(line))
        + "</tr>"
        for line in [*cells(report), totals(report)]
    )
    names = [row.name for row in report.steps]
    pictures = [
        _bars("Memory", names, [row.bytes for row in report.steps], [wording.size(row.bytes) for row in report.steps])
    ]
    times = [milliseconds(report, row) for row in report.steps]
    if any(value is not None for value in times):
        pictures.append(_bars("Milliseconds per call", names, times, [_number(value) for value in times]))
    pictures.append(_scatter(report, times))
    return (
        f"<h2>Steps</h2>\n<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>\n"
        f'<div class="pictures">{"".join(pictures)}</div>'
    )


def _bars(title: str, names: Sequence[str], values: Sequence[float | None], labels: Sequence[str]) -> str:
    most = max(value for value in values if value is not None) or 1.0
    lines = []
    for index, (name, value, label) in enumerate(zip(names, values, labels, strict=True)):
        y, width = 34 + 26 * index, 190 * (value or 0.0) / most
        lines.append(f'<text x="108" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        lines.append(f'<rect x="116" y="{y}" width="{width:.1f}" height="17" rx="2"/>')
        lines.append(f'<text x="{122 + width:.1f}" y="{y + 13}">{escape(label)}</text>')
    height = 42 + 26 * len(names)
    return _figure(title, 400, height, "".join(lines))


def _scatter(report: Report, times: Sequence[float | None]) -> str:
    points = [
        (time, row.metric, row.name)
        for time, row in zip(times, report.steps, strict=True)
        if time is not None and row.metric is not None and math.isfinite(row.metric)
    ]
    if len(points) < 2:
        return ""
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    right, low, high = max(xs) * 1.15, min(ys), max(ys)
    margin = 0.15 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        return 64 + 316 * x / right, 34 + 196 * (high - y) / (high - low)

    lines = ['<path class="axis" d="M64 34V230H380"/>']
    for part in (0.0, 0.5, 1.0):
        x, y = place(part * right, low)[0], place(0.0, low + part * (high - low))[1]
        anchor = "end" if part == 1.0 else "middle"
        lines.append(f'<text x="{x:.0f}" y="247" text-anchor="{anchor}">{_number(part * right)}</text>')
        lines.append(f'<text x="58" y="{y + 4:.0f}" text-anchor="end">{low + part * (high - low):.3g}</text>')
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(time, metric) for time, metric, _ in points))
    lines.append(f'<polyline points="{path}"/>')
    taken: list[tuple[float, float]] = []
    for time, metric, name in points:
        x, y = place(time, metric)
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
        at, end = y - 9, x > 300
        while any(abs(at - other) < 13 and abs(x - left) < 110 for left, other in taken):
            at += 13
        taken.append((x, at))
        anchor = ' text-anchor="end"' if end else ""
        lines.append(f'<text x="{x + (-6 if end else 6):.1f}" y="{at:.1f}"{anchor}>{escape(name)}</text>')
    lines.append('<text x="222" y="264" text-anchor="middle">milliseconds per call</text>')
    return _figure("Metric against time", 400, 272, "".join(lines))


def _figure(title: str, width: int, height: int, content: str) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    head = (
        f'<svg role="img" aria-label="{escape(title)}" {size}><text class="title" x="8" y="18">{escape(title)}</text>'
    )
    return f"{head}{content}</svg>"


def _energy(joules: float | None) -> str:
    if joules is None:
        return "not available"
    return f"{joules:.3g} J" if joules >= 1 else f"{1e3 * joules:.3g} mJ"


def _operations(count: int | None) -> str:
    if count is None:
        return "-"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"

"""The report as a text table."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tersor import text
from tersor.report import steps, wording
from tersor.report.report import LayerRow, Report

_NUMBERS = ("n", "shape", "bytes each", "error", "us")
_GAP = 2
_NARROWEST_NAME = 16
_SUGGESTIONS = 5


def render(report: Report, width: int, color: bool) -> str:
    """The whole report as text of ``width`` columns; more where the numbers don't fit otherwise."""
    notes: dict[str, int] = {}
    lines = _lines(report, notes)
    table, width = _table(lines, width)
    items: list[RenderableType] = [table]
    items += [Text(f"({number}) {note}") for note, number in notes.items()]
    if len(report.steps) > 2 or any(row.metric is not None for row in report.steps):
        items += ["", steps.table(report)]
        if all(row.joules is None for row in report.steps):
            items.append(Text("Energy: not available."))
    items += ["", *(Text(line, style="bold") for line in wording.headline(report))]
    if host := wording.host(report):
        items.append(Text(f"Measured: {host}."))
    items += [Text(line, style="yellow") for line in _suggestions(report)]
    items += [Text(f"Warning: {warning}", style="yellow") for warning in report.warnings]
    items += [Text(f"Note: {note}") for note in report.notes]
    return text.render(*items, width=width, color=color)


def groups(report: Report) -> list[list[LayerRow]]:
    """Rows that differ only in the numbers of their names, in measured values and errors, together."""
    found: dict[tuple[object, ...], list[LayerRow]] = {}
    for row in report.rows:
        reason = row.reason if row.action == "kept" and not row.float_us else ""
        key = (
            wording.family(row.name),
            row.kind,
            row.action,
            row.shape,
            row.forced,
            row.aliases,
            reason,
            row.layer,
            row.form,
        )
        found.setdefault(key, []).append(row)
    return list(found.values())


def _lines(report: Report, notes: dict[str, int]) -> list[list[Text]]:
    """The cells of the table; ``notes`` collects what goes below it."""
    sections: dict[str, list[tuple[str, list[LayerRow]]]] = {}
    for group in groups(report):
        head, tail = wording.split(wording.joined([row.name for row in group]))
        sections.setdefault(head, []).append((tail, group))
    lines = []
    for head, members in sections.items():
        if head:
            lines.append([Text(head, style="bold")])
        for tail, group in members:
            lines.append([Text(f"  {tail}" if head else tail), *_cells(group, notes)])
    return lines


def _cells(group: Sequence[LayerRow], notes: dict[str, int]) -> list[Text]:
    first = group[0]
    errors = [row.rel_error for row in group if row.rel_error is not None]
    us, speed = wording.times(first)
    sizes = wording.size(first.bytes_before)
    remarks = [f"also called {', '.join(first.aliases)}"] if first.aliases else []
    remarks += [f"in one call: {', '.join(first.parts)}"] if first.parts else []
    result: str = first.action
    if first.action == "swapped":
        sizes += f" -> {wording.size(first.bytes_after)}"
    elif not first.float_us:
        remarks.append(first.reason)
    if first.float_us:
        result += f", {speed}"
    if first.sparsity is not None:
        result += f", {wording.zeros(group)}"
        remarks += [first.remark] if first.remark else []
    if first.forced:
        result += ", forced"
    for remark in remarks:
        result += f" ({notes.setdefault(remark, len(notes) + 1)})"
    cells = [str(len(group)), wording.shape(first), sizes, wording.percent(max(errors, default=None)), us]
    return [*map(Text, cells), Text(result, style="green" if first.action == "swapped" else "yellow")]


def _table(lines: Sequence[Sequence[Text]], width: int) -> tuple[Table, int]:
    """The table and the width it needs: the names get what the other columns leave."""
    titles = (*_NUMBERS, "result")
    widths = [
        max([len(title), *(len(line[index]) for line in lines if len(line) > index)])
        for index, title in enumerate(titles, start=1)
    ]
    others = sum(widths) + _GAP * len(widths)
    longest = max([len("layer"), *(len(line[0]) for line in lines)])
    name = min(longest, max(_NARROWEST_NAME, width - others))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("layer", overflow="fold", width=name)
    for title, cells in zip(titles, widths, strict=True):
        table.add_column(title, justify="left" if title == "result" else "right", width=cells, no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table, max(width, name + others)


def _suggestions(report: Report) -> list[str]:
    advised = [row for row in report.worst() if row.suggestion]
    lines = [f"{row.name}: error {wording.percent(row.rel_error)}. {row.suggestion}" for row in advised[:_SUGGESTIONS]]
    if len(advised) > _SUGGESTIONS:
        lines.append(f"{len(advised) - _SUGGESTIONS} more layers have an error as large as that.")
    return lines

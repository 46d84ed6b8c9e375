"""Numbers and names of a report in words, shared by the table and the page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tersor import text
from tersor.report.report import LayerRow, Report


def size(count: int) -> str:
    """Bytes in decimal units: ``590 kB``."""
    if count < 1000:
        return f"{count} B"
    value, units = float(count), ["kB", "MB", "GB"]
    for unit in units:
        value /= 1000
        if value < 999.5 or unit == units[-1]:
            return f"{value:.0f} {unit}" if value >= 99.5 else f"{value:.3g} {unit}"
    raise AssertionError(count)


def percent(value: float | None) -> str:
    """A fraction as per cent; ``-`` where there is none."""
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if value < 1 else f"{100 * value:.0f} %" if value < 100 else f"{value:.1e}"


def times(row: LayerRow) -> tuple[str, str]:
    """Microseconds ``float -> tersor`` and the ratio at the largest number of rows; ``-`` where not measured."""
    common = sorted(row.float_us.keys() & row.tersor_us.keys())
    if not common:
        return "-", "-"
    before, after = row.float_us[common[-1]], row.tersor_us[common[-1]]
    speed = f"{before / after:.2g}x" if after else "-"
    return f"{text.microseconds(before)} -> {text.microseconds(after)}", speed


def zeros(rows: Sequence[LayerRow]) -> str:
    """What pruning made of layers: ``sparse quads, 80 % zeros in 1x4``; ``dense`` where the zeros are stored."""
    shares = sorted({f"{100 * (row.sparsity or 0.0):.0f}" for row in rows}, key=int)
    share = " to ".join(dict.fromkeys((shares[0], shares[-1])))
    how = "sparse" if (rows[0].layer or "").startswith("Sparse") else "dense"
    how += f" {rows[0].form}" if rows[0].form else ""
    return f"{how}, {share} % zeros in {rows[0].pattern}"


def shape(row: LayerRow) -> str:
    """``out x in``."""
    return f"{row.shape[0]}x{row.shape[1]}" if row.shape else "-"


def family(name: str) -> str:
    """A name with its numbers taken out, the same for the same layer of every block."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def joined(names: Sequence[str]) -> str:
    """One label for names of one family: ``encoder.{0..5}.query``."""
    parts = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(_numbers(list(dict.fromkeys(part))) for part in parts)


def split(label: str) -> tuple[str, str]:
    """A label cut behind its last number: ``encoder.{0..5}`` and ``attention.query``; no number, no first part."""
    parts = re.split(r"\.(?![^{]*})", label)  # at its dots, those within {0..5} left alone
    numbers = [index for index, part in enumerate(parts) if part.isdigit() or part.startswith("{")]
    cut = numbers[-1] + 1 if numbers else 0
    return (".".join(parts[:cut]), ".".join(parts[cut:])) if cut < len(parts) else ("", label)


def _numbers(values: list[str]) -> str:
    if len(values) == 1:
        return values[0]
    numbers = sorted(int(value) for value in values)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [",".join(map(str, run)) if len(run) < 3 else f"{run[0]}..{run[-1]}" for run in runs]
    return "{" + ",".join(texts) + "}"


def headline(report: Report) -> list[str]:
    """The totals in sentences."""
    totals = report.totals
    ratio = totals.bytes_before / totals.bytes_after if totals.bytes_after else 0.0
    lines = [
        f"{totals.swapped} of {totals.swapped + totals.kept} linear layers swapped.",
        f"Memory of {totals.parameters:,} parameters: "
        f"{size(totals.bytes_before)} -> {size(totals.bytes_after)} ({ratio:.2f}x smaller).",
    ]
    if totals.output_error is not None and totals.output_cosine is not None:
        lines.append(
            f"Output against the float model: error {percent(totals.output_error)}, cosine {totals.output_cosine:.5f}."
        )
    return lines


def host(report: Report) -> str:
    """What the times belong to: rows, threads, instruction set, versions."""
    rows = sorted({max(row.float_us) for row in report.rows if row.float_us})
    parts = [f"{key} {value}" for key, value in report.host.items()]
    if rows:
        parts.insert(0, f"us per call at {' or '.join(str(count) for count in rows)} rows")
    return ", ".join(parts)

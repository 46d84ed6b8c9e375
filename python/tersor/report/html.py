"""The report as one self-contained HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from html import escape
from string import Template

from tersor.report import wording
from tersor.report.report import LayerRow, Report

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tersor report</title>
<style>
:root { color-scheme: light dark; --line: #8884; --swapped: #1a7f4b; --kept: #b06d00; }
@media (prefers-color-scheme: dark) { :root { --swapped: #4cc38a; --kept: #f0b449; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
th { position: sticky; top: 0; background: Canvas; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.name { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
.swapped { color: var(--swapped); } .kept { color: var(--kept); }
.bar { display: inline-block; height: .6em; background: var(--kept); margin-right: .4em; }
.warning { border-left: 3px solid var(--kept); padding-left: .8rem; }
</style>
</head>
<body>
<h1>tersor report</h1>
$summary
$worst
<h2>Layers</h2>
<table>
<thead><tr><th>layer</th><th>result</th><th class="number">shape</th><th class="number">before</th>
<th class="number">after</th><th class="number">error</th><th class="number">us, float -&gt; tersor</th>
<th class="number">speed</th><th>why</th></tr></thead>
<tbody>
$rows
</tbody>
</table>
</body>
</html>
""")


def render(report: Report) -> str:
    """The page as text."""
    errors = [row.rel_error for row in report.rows if row.rel_error is not None]
    top = max((error for error in errors if math.isfinite(error)), default=0.0)
    return _PAGE.substitute(
        summary=_summary(report),
        worst=_worst(report),
        rows="\n".join(_row(row, top) for row in report.rows),
    )


def _summary(report: Report) -> str:
    lines = [f"<p>{escape(line)}</p>" for line in wording.headline(report)]
    if host := wording.host(report):
        lines.append(f"<p>Measured: {escape(host)}.</p>")
    lines += [f'<p class="warning">Warning: {escape(text)}</p>' for text in report.warnings]
    lines += [f"<p>Note: {escape(text)}</p>" for text in report.notes]
    return "\n".join(lines)


def _worst(report: Report) -> str:
    worst = report.worst(5)
    if not worst:
        return ""
    items = [
        f'<li><span class="name">{escape(row.name)}</span>: {wording.percent(row.rel_error)}'
        f"{'. ' + escape(row.suggestion) if row.suggestion else ''}</li>"
        for row in worst
    ]
    return "<h2>Largest errors</h2>\n<ol>\n" + "\n".join(items) + "\n</ol>"


def _row(row: LayerRow, top: float) -> str:
    us, speed = wording.times(row)
    names = ", ".join((row.name, *row.aliases))
    share = min(1.0, (row.rel_error or 0.0) / top) if top else 0.0
    bar = f'<span class="bar" style="width:{3 * share:.2f}em"></span>' if row.rel_error is not None else ""
    numbers = [
        escape(wording.shape(row)),
        wording.size(row.bytes_before),
        wording.size(row.bytes_after),
        bar + wording.percent(row.rel_error),
        escape(us),
        speed,
    ]
    cells = "".join(f'<td class="number">{cell}</td>' for cell in numbers)
    action = row.action + (", forced" if row.forced else "")
    return (
        f'<tr><td class="name">{escape(names)}</td><td class="{row.action}">{action}</td>{cells}'
        f"<td>{escape(row.reason)}</td></tr>"
    )

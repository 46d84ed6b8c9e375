"""The report as one self-contained HTML page: nothing is loaded from elsewhere; the layers can be sorted."""

from __future__ import annotations

import math
from html import escape
from string import Template

from tersor.report import steps, wording
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
.name { font-family: ui-monospace, monospace; overflow-wrap: anywhere; min-width: 11em; }
.total { font-weight: 600; }
.swapped { color: var(--swapped); } .kept { color: var(--kept); }
.bar { display: inline-block; height: .6em; background: var(--kept); margin-right: .4em; }
th.sorts { cursor: pointer; } th.sorts:hover { text-decoration: underline; }
th[aria-sort="ascending"]::after { content: " \\25B2"; } th[aria-sort="descending"]::after { content: " \\25BC"; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; margin: 1rem 0; align-items: flex-start; }
.pictures svg { flex: 1 1 320px; max-width: 400px; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; } svg .title { font-weight: 600; font-size: 13px; }
svg rect, svg circle { fill: var(--swapped); } svg polyline { fill: none; stroke: var(--swapped); opacity: .5; }
svg .axis { fill: none; stroke: var(--line); }
.warning { border-left: 3px solid var(--kept); padding-left: .8rem; }
</style>
</head>
<body>
<h1>tersor report</h1>
$summary
$steps
$worst
<h2>Layers</h2>
<table id="layers">
<thead><tr><th>layer</th><th>result</th><th class="number">shape</th><th class="number">before</th>
<th class="number">after</th><th class="number">error</th><th class="number">us, float -&gt; tersor</th>
<th class="number">speed</th><th>why</th></tr></thead>
<tbody>
$rows
</tbody>
</table>
<script>
// A click on a heading sorts by it: by number where cells have one, else by text; a second click turns it round.
const table = document.getElementById("layers"), body = table.tBodies[0];
const value = cell => cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
[...table.tHead.rows[0].cells].forEach((head, column) => {
  head.className += " sorts";
  head.onclick = () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (a, b) => typeof a === "number" ? a - b : a.localeCompare(b, undefined, {numeric: true});
    const rows = [...body.rows].sort((a, b) => order(value(a.cells[column]), value(b.cells[column])));
    body.append(...(down ? rows.reverse() : rows));
  };
});
</script>
</body>
</html>
""")


def render(report: Report) -> str:
    """The page as text."""
    errors = [row.rel_error for row in report.rows if row.rel_error is not None]
    top = max((error for error in errors if math.isfinite(error)), default=0.0)
    return _PAGE.substitute(
        summary=_summary(report),
        steps=steps.html(report),
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
    common = row.float_us.keys() & row.tersor_us.keys()
    last = max(common, default=None)
    numbers: list[tuple[float, str]] = [
        (row.shape[0] * row.shape[1] if row.shape else -1, escape(wording.shape(row))),
        (row.bytes_before, wording.size(row.bytes_before)),
        (row.bytes_after, wording.size(row.bytes_after)),
        (-1 if row.rel_error is None else row.rel_error, bar + wording.percent(row.rel_error)),
        (-1 if last is None else row.float_us[last], escape(us)),
        (-1 if last is None or not row.tersor_us[last] else row.float_us[last] / row.tersor_us[last], speed),
    ]
    cells = "".join(f'<td class="number" data-value="{_plain(value)}">{cell}</td>' for value, cell in numbers)
    action = row.action + (", forced" if row.forced else "")
    return (
        f'<tr><td class="name">{escape(names)}</td><td class="{row.action}">{action}</td>{cells}'
        f"<td>{escape(row.reason)}</td></tr>"
    )


def _plain(value: float) -> str:
    return f"{value:.9g}" if math.isfinite(value) else "1e300"

"""Results of prune_minilm.py or prune_fashion.py, from one or several runs, as Markdown tables, one JSON and a plot.

    python bench/show_pruning.py a.json b.json --json all.json --png all.png

Of rows about the same thing the last one counts. A row may hold "ms", a latency, which then is shown too.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

Row = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One panel of the plot: its title, what its rows have in common, the figure drawn and that of the float model."""

    title: str
    common: Row
    value: str
    whole: float


KEYS = ("network", "pattern", "sparsity", "steps", "criterion")
FIGURES = {
    "cosine_lee": "cosine, Lee",
    "cosine_r8": "cosine, R8",
    "lee": "Lee",
    "wordsim": "WordSim",
    "r8": "R8",
    "at_once": "at once",
    "accuracy": "fine-tuned",
    "ms": "ms",
}
COLOURS = {
    "sparsegpt": "#1f77b4",
    "wanda": "#2ca02c",
    "entropy": "#9467bd",
    "magnitude": "#7f7f7f",
    "fisher": "#d62728",
    "gradient": "#ff7f0e",
    "random": "#bcbd22",
}


def merge(results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Rows of all runs, each with the number of its run; the runs with their commands and devices."""
    runs: list[dict[str, Any]] = []
    rows: dict[tuple[Any, ...], Row] = {}
    for result in results:
        for run in result.get("runs", [result]):
            found = [row for row in result["rows"] if row.get("run") == run.get("run")]
            number = len(runs)
            runs.append({**{key: value for key, value in run.items() if key != "rows"}, "run": number})
            for row in found:
                kept = {key: value for key, value in row.items() if key != "losses"}
                rows[tuple(row.get(key, "") for key in KEYS)] = {**kept, "run": number}
    used = {row["run"] for row in rows.values()}
    ordered = sorted(rows.items(), key=lambda item: tuple(map(str, item[0])))
    return {"runs": [run for run in runs if run["run"] in used], "rows": [row for _, row in ordered]}


def tables(rows: Sequence[Row], floats: Row) -> str:
    """Markdown: a table per network, pattern and amount of training, criteria by sparsities."""
    figures = [key for key in FIGURES if any(key in row for row in rows)]
    heads = [key for key in ("network", "pattern", "steps") if key in rows[0]]
    parts = []
    for group, found in itertools.groupby(sorted(rows, key=lambda row: _key(row, heads)), lambda row: _key(row, heads)):
        here = list(found)
        levels = sorted({row["sparsity"] for row in here})
        cells = {(row["criterion"], row["sparsity"]): row for row in here}
        parts.append(", ".join(f"{head} {value}" for head, value in zip(heads, group, strict=True)))
        parts[-1] += ": " + " / ".join(FIGURES[key] for key in figures) + "\n"
        parts.append(f"| criterion | {' | '.join(f'{level:g}' for level in levels)} |")
        parts.append("|" + "---|" * (len(levels) + 1))
        for name in COLOURS:
            line = [_cell(cells.get((name, level), {}), figures) for level in levels]
            if any(line):
                parts.append(f"| `{name}` | {' | '.join(line)} |")
        parts.append("")
    return "\n".join([f"float: {floats}\n", *parts])


def _key(row: Row, heads: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[head] for head in heads)


def _cell(row: Row, figures: Sequence[str]) -> str:
    return " / ".join(f"{row[key]:.3f}" for key in figures if key in row)


def plot(rows: Sequence[Row], panels: Sequence[Panel], path: Path) -> None:
    """A line per criterion, over sparsity, in every panel."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 4 if len(panels) > 4 else 2
    height = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(4.4 * columns, 3.6 * height), squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        fitting = [row for row in rows if all(row.get(key) == wanted for key, wanted in panel.common.items())]
        for name, colour in COLOURS.items():
            points = sorted((row["sparsity"], row[panel.value]) for row in fitting if row["criterion"] == name)
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=name)
        axis.axhline(panel.whole, color="black", linewidth=0.8, linestyle=":", label="float")
        axis.set(title=panel.title, xlabel="sparsity", ylabel=FIGURES[panel.value])
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(labels), frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)


def panels_of(rows: Sequence[Row], floats: Row) -> list[Panel]:
    """What to draw: of MiniLM the cosine, of Fashion-MNIST the accuracy, both at once and after training."""
    if "network" in rows[0]:
        kinds = itertools.product(("cnn", "mlp"), ("at_once", "accuracy"), ("unstructured", "1x4"))
        return [
            Panel(f"{net}, {shape}, {FIGURES[value]}", {"network": net, "pattern": shape}, value, floats[net])
            for net, value, shape in kinds
        ]
    found = []
    for shape in ("unstructured", "1x4"):
        for steps in sorted({row["steps"] for row in rows if row["pattern"] == shape}):
            title = f"{shape}, {f'{steps} steps of recovery' if steps else 'at once'}"
            found.append(Panel(title, {"pattern": shape, "steps": steps}, "cosine_lee", 1.0))
    return found


def main(
    files: Annotated[list[Path], typer.Argument(help="Results of either script.")],
    out: Annotated[Path | None, typer.Option("--json", help="All rows in one file.")] = None,
    png: Annotated[Path | None, typer.Option(help="The plot.")] = None,
) -> None:
    """Print tables; write the merged results and the plot."""
    result = merge(json.loads(path.read_text()) for path in files)
    floats: Row = {}
    for run in result["runs"]:
        floats |= run["float"]
    print(tables(result["rows"], floats))
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    if png is not None:
        plot(result["rows"], panels_of(result["rows"], floats), png)


if __name__ == "__main__":
    typer.run(main)

"""Sparse layers against dense ones and against the CSR products of SciPy and torch; `compare.py --op sparse` runs it.

Per shape and number of rows all engines and all densities take turns in one run: torch fp32, torch dynamic int8,
tersor's dense int8 layer, its sparse int8 and sparse float layers, SciPy CSR and torch CSR in fp32. CSR products get x
as they like it, transposed and contiguous, and leave y transposed; calls of more than 2e8 multiply-adds are left out.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROWS = (1, 4, 16, 64, 128, 512)
DENSITIES = (0.5, 0.3, 0.2, 0.1, 0.05)
PATTERNS = ("1x4", "unstructured")
MOST_CSR_MACS = 2e8
TURN_SECONDS = 1e-3

Run = Callable[[], Any]


@dataclass
class Cell:
    """One shape and number of rows: microseconds of the dense engines, and of the sparse ones by pattern and density.

    `ceiling` is the percent of the int8 ceiling that the sparse int8 layer reaches, counting only what is not 0.
    """

    m: int
    n: int
    k: int
    dense: dict[str, float]
    sparse: dict[str, dict[str, dict[str, float]]]  # engine -> pattern -> density -> microseconds
    ceiling: dict[str, dict[str, float]]
    forms: dict[str, dict[str, str]]


@dataclass
class Sweep:
    op: str
    threads: int
    command: str
    host: dict[str, str]
    ceiling_gops: float
    cells: list[Cell] = field(default_factory=list)


def load(path: Path, fresh: Sweep) -> Sweep:
    """The sweep in a file, to go on with; `fresh` where there is none or it belongs to another host."""
    if not path.exists():
        return fresh
    found = json.loads(path.read_text())
    if found["host"] != fresh.host or found["threads"] != fresh.threads:
        return fresh
    found["cells"] = [Cell(**cell) for cell in found["cells"]]
    return Sweep(**found)


def run_sparse(shapes: Iterable[tuple[int, int]], rows: Iterable[int], rounds: int, sweep: Sweep, save: Run) -> None:
    """Adds the cells of these (N, K) that the sweep has not yet, calling `save` after each shape."""
    import torch
    from rich.console import Console
    from rich.progress import track

    torch.set_num_threads(sweep.threads)
    have = {(cell.m, cell.n, cell.k) for cell in sweep.cells}
    todo = [(n, k) for n, k in shapes if any((m, n, k) not in have for m in rows)]
    for n, k in track(todo, description="shapes", console=Console(stderr=True)):
        weights = _weights(n, k)
        with torch.inference_mode():
            layers = _layers(weights)
            for m in rows:
                if (m, n, k) not in have:
                    sweep.cells.append(_cell(m, n, k, weights, layers, rounds, sweep))
        save()


def _weights(n: int, k: int) -> dict[tuple[str, float], np.ndarray]:
    """fp32 [n, k] by pattern and density, and the dense one as ("dense", 1.0)."""
    rng = np.random.default_rng(0)
    dense = (rng.standard_normal((n, k)) / k**0.5).astype(np.float32)
    found = {("dense", 1.0): dense}
    for pattern in PATTERNS:
        block = 4 if pattern == "1x4" else 1
        scores = np.repeat(rng.random((n, -(-k // block))), block, axis=1)[:, :k]
        for density in DENSITIES:
            found[pattern, density] = np.where(scores < density, dense, np.float32(0))
    return found


def _layers(weights: dict[tuple[str, float], np.ndarray]) -> dict[str, Any]:
    """tersor's layers by engine, pattern and density; each sparse int8 one is checked against its dense twin."""
    import torch
    from torch import nn

    from tersor.nn import Int8Linear, SparseInt8Linear, SparseLinear
    from tersor.torch_int8 import dynamic_int8, engines

    made: dict[str, Any] = {}
    for (pattern, density), weight in weights.items():
        n, k = weight.shape
        layer = nn.Linear(k, n).eval()
        layer.weight.copy_(torch.from_numpy(weight))
        if pattern == "dense":
            made["torch"], made["tersor-int8"] = layer, Int8Linear.from_float(layer)
            made["torch-int8"] = dynamic_int8(nn.Sequential(layer), engines()[0])
            continue
        sparse, x = SparseInt8Linear.from_float(layer, pattern=pattern), torch.randn(5, k)
        assert torch.equal(sparse(x), Int8Linear.from_float(layer)(x)), "sparse int8 differs from dense int8"
        made[f"sparse-int8 {pattern} {density}"] = sparse
        made[f"sparse-f32 {pattern} {density}"] = SparseLinear.from_float(layer, pattern=pattern)
    return made


def _cell(
    m: int, n: int, k: int, weights: dict[Any, np.ndarray], layers: dict[str, Any], rounds: int, sweep: Sweep
) -> Cell:
    import torch

    from tersor.benchmark import interleave

    x = np.random.default_rng(1).standard_normal((m, k)).astype(np.float32)
    runs: dict[str, Run] = {name: functools.partial(layer, torch.from_numpy(x)) for name, layer in layers.items()}
    runs |= _csr(weights, x)
    laps = interleave(runs, rounds=rounds, warmup=1, turn_seconds=TURN_SECONDS)
    us = {name: round(lap.median * 1e6, 2) for name, lap in laps.items()}
    cell = Cell(m, n, k, {name: time for name, time in us.items() if " " not in name}, {}, {}, {})
    for name, time in us.items():
        engine, *what = name.split(" ")
        if what:
            cell.sparse.setdefault(engine, {}).setdefault(what[0], {})[what[1]] = time
        if engine == "sparse-int8":
            macs = m * np.count_nonzero(weights[what[0], float(what[1])])
            share = 0.2 * macs / time / (sweep.ceiling_gops * sweep.threads)
            cell.ceiling.setdefault(what[0], {})[what[1]] = round(share, 1)
            cell.forms.setdefault(what[0], {})[what[1]] = layers[name].form
    return cell


def _csr(weights: dict[Any, np.ndarray], x: np.ndarray) -> dict[str, Run]:
    import torch
    from scipy import sparse

    turned = np.ascontiguousarray(x.T)
    there = torch.from_numpy(turned)
    runs: dict[str, Run] = {}
    for (pattern, density), weight in weights.items():
        if pattern == "dense" or len(x) * np.count_nonzero(weight) > MOST_CSR_MACS:
            continue
        csr = sparse.csr_matrix(weight)
        runs[f"scipy-csr {pattern} {density}"] = functools.partial(csr.__matmul__, turned)
        starts, columns = (torch.from_numpy(part.astype(np.int64)) for part in (csr.indptr, csr.indices))
        values = torch.from_numpy(csr.data)
        own = torch.sparse_csr_tensor(starts, columns, values, csr.shape, check_invariants=False)
        runs[f"torch-csr {pattern} {density}"] = functools.partial(torch.matmul, own, there)
    return runs


# --- What is read off it.


def gain(cell: Cell, engine: str, pattern: str, density: float) -> float:
    """How many times faster the sparse layer is than the dense one that it replaces."""
    rival = cell.dense["tersor-int8" if engine == "sparse-int8" else "torch"]
    return rival / cell.sparse[engine][pattern][str(density)]


def crossover(cell: Cell, engine: str, pattern: str) -> str:
    """From which sparsity on sparse wins, in percent: read off a line between the two densities around it."""
    times = [(density, 1 / gain(cell, engine, pattern, density)) for density in DENSITIES]
    if times[0][1] <= 1:
        return f"< {100 * (1 - times[0][0]):.0f}"
    for (density, slow), (less, fast) in itertools.pairwise(times):
        if fast <= 1:
            return f"{100 * (1 - density + (density - less) * (slow - 1) / (slow - fast)):.0f}"
    return f"> {100 * (1 - times[-1][0]):.0f}"


def table(sweep: Sweep) -> str:
    """The crossover surface and the gains at 80 and 90 % as Markdown."""
    shapes = list(dict.fromkeys((cell.n, cell.k) for cell in sweep.cells))
    cells = {(cell.m, cell.n, cell.k): cell for cell in sweep.cells}
    lines = [
        "# Sparse layers: from which sparsity on they win",
        "",
        f"`{sweep.command}`",
        "",
        f"Host: {', '.join(f'{key} {value}' for key, value in sweep.host.items())}; {sweep.threads} thread(s).",
        "",
        "Sparse int8 is against tersor's dense int8 layer, sparse float against torch fp32. In each field: sparsity",
        "in percent from which on sparse is faster / its gain at 80 % / at 90 %.",
        "",
    ]
    for engine, pattern in _kinds():
        lines += [f"## {engine}, {pattern}", "", "| N x K | " + " | ".join(f"M = {m}" for m in ROWS) + " |"]
        lines.append("|---" * (len(ROWS) + 1) + "|")
        for n, k in shapes:
            fields = [f"{n} x {k}"]
            for m in ROWS:
                cell = cells.get((m, n, k))
                text = "-"
                if cell is not None:
                    gains = " / ".join(f"{gain(cell, engine, pattern, density):.1f}" for density in (0.2, 0.1))
                    text = f"{crossover(cell, engine, pattern)} / {gains}"
                fields.append(text)
            lines.append("| " + " | ".join(fields) + " |")
        lines.append("")
    return "\n".join(lines)


def plot(sweep: Sweep, path: Path) -> None:
    """The gain over the dense layer by rows and sparsity, geometric means over the shapes, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import colors
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    image: Any = None
    for axis, (engine, pattern) in zip(axes.flat, _kinds(), strict=True):
        grid = [[_mean_gain(sweep, m, engine, pattern, density) for m in ROWS] for density in DENSITIES]
        image = axis.imshow(grid, cmap="RdBu", norm=colors.LogNorm(1 / 8, 8), aspect="auto", origin="lower")
        for y, line in enumerate(grid):
            for x, value in enumerate(line):
                axis.text(x, y, f"{value:.1f}", ha="center", va="center", color="black" if 0.4 < value < 3 else "white")
        if min(map(min, grid)) < 1 < max(map(max, grid)):
            axis.contour(grid, levels=[1.0], colors="black", linewidths=1.5)
        axis.set_xticks(range(len(ROWS)), [str(m) for m in ROWS])
        axis.set_yticks(range(len(DENSITIES)), [f"{100 * (1 - density):.0f} %" for density in DENSITIES])
        rival = "tersor's dense int8" if engine == "sparse-int8" else "torch fp32"
        axis.set(title=f"{engine}, {pattern}, over {rival}", xlabel="rows of x", ylabel="sparsity")
    ticks = [0.125, 0.25, 0.5, 1, 2, 4, 8]
    bar = figure.colorbar(image, ax=axes, label="times faster (black line: break-even)", ticks=ticks, format="%g")
    bar.ax.minorticks_off()
    shapes = len({(cell.n, cell.k) for cell in sweep.cells})
    figure.suptitle(f"Sparse layers over dense ones, {sweep.threads} thread(s), geometric mean of {shapes} shapes")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _kinds() -> list[tuple[str, str]]:
    return [(engine, pattern) for engine in ("sparse-int8", "sparse-f32") for pattern in PATTERNS]


def _mean_gain(sweep: Sweep, m: int, engine: str, pattern: str, density: float) -> float:
    gains = [gain(cell, engine, pattern, density) for cell in sweep.cells if cell.m == m]
    return math.exp(statistics.fmean(math.log(value) for value in gains)) if gains else math.nan


def to_json(sweep: Sweep) -> str:
    """The sweep as JSON text."""
    return json.dumps(asdict(sweep)) + "\n"

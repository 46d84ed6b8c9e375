"""tersor's layers against their rivals, interleaved in one run.

    python bench/compare.py --op linear --threads 1 --json out.json
    python bench/compare.py --op sparse --threads 1 --json out.json --table out.md --png out.png
    python bench/compare.py --op lowrank --threads 1 --json out.json --table out.md --png out.png
    python bench/compare.py --op conv --threads 1 --json out.json

Every engine computes the same fp32-in, fp32-out layer on the same numbers. Per shape: medians over interleaved rounds,
the speed-up over the best rival, GOP/s and the percent of the int8 ceiling measured on this host in the same run.
"""

from __future__ import annotations

import functools
import json
import math
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import conv_sweep as conv  # noqa: E402  (beside this file)
import lowrank_sweep as lowrank  # noqa: E402
import sparse_sweep as sparse  # noqa: E402

PEERS = ("torch", "torch-int8", "onnxruntime", "openvino")


@dataclass
class Row:
    """One shape: microseconds per engine, and what is read off them."""

    m: int
    n: int
    k: int
    microseconds: dict[str, float]
    relative_error: dict[str, float]
    kernel: str
    best_rival: str = ""
    speedup: float = math.nan
    gops: float = math.nan
    percent_of_ceiling: float = math.nan


@dataclass
class Result:
    op: str
    threads: int
    command: str
    host: dict[str, str]
    ceiling_gops: float
    missing: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    geomean_speedup: float = math.nan
    worst_speedup: float = math.nan


def read_shapes(path: Path, names: str = "M N K") -> list[tuple[int, ...]]:
    """Numbers per line, # starts a comment."""
    shapes = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.split("#")[0].replace(",", " ").split()
        if not words:
            continue
        least = [0 if name == "PAD" else 1 for name in names.split()]
        right = len(words) == len(least) and all(map(str.isdigit, words))
        if not right or any(int(word) < low for word, low in zip(words, least, strict=True)):
            raise typer.BadParameter(f"{path}:{number}: expected positive numbers {names}, got {line!r}")
        shapes.append(tuple(map(int, words)))
    return shapes


def run_linear(shapes: list[tuple[int, ...]], threads: int, peers: list[str], rounds: int, result: Result) -> None:
    import torch
    from peers import MissingPeerError, Problem, Run, make_problem
    from peers.onnxruntime_peer import onnxruntime
    from peers.openvino_peer import openvino
    from peers.torch_peers import float_layer, torch_float, torch_int8
    from rich.console import Console
    from rich.progress import track

    from tersor import kernels
    from tersor.benchmark import interleave
    from tersor.nn import Int8Linear

    builders: dict[str, Callable[[Problem], dict[str, Run]]] = {
        "torch": torch_float,
        "torch-int8": torch_int8,
        "onnxruntime": onnxruntime,
        "openvino": openvino,
    }
    torch.set_num_threads(threads)
    for m, n, k in track(shapes, description="shapes", console=Console(stderr=True)):
        problem = make_problem(m, n, k, threads)
        layer = Int8Linear.from_float(float_layer(problem))
        runs: dict[str, Run] = {"tersor": functools.partial(layer, torch.from_numpy(problem.x))}
        for peer in peers:
            try:
                runs.update(builders[peer](problem))
            except MissingPeerError as error:
                result.missing[peer] = str(error)
        exact = problem.x.astype(np.float64) @ problem.weight.T.astype(np.float64) + problem.bias
        with torch.inference_mode():
            errors = {
                name: float(np.linalg.norm(np.asarray(run()) - exact) / np.linalg.norm(exact))
                for name, run in runs.items()
            }
            laps = interleave(runs, rounds=rounds)
        microseconds = {name: lap.median * 1e6 for name, lap in laps.items()}
        kernel = str(kernels.inspect_s8(layer.packed.numpy())["kernel"])
        row = Row(m, n, k, microseconds, errors, kernel)
        rivals = {name: us for name, us in microseconds.items() if name != "tersor"}
        if rivals:
            row.best_rival = min(rivals, key=lambda name: rivals[name])
            row.speedup = rivals[row.best_rival] / microseconds["tersor"]
        row.gops = 2e-3 * m * n * k / microseconds["tersor"]
        row.percent_of_ceiling = 100 * row.gops / (result.ceiling_gops * threads)
        result.rows.append(row)
    speedups = [row.speedup for row in result.rows if not math.isnan(row.speedup)]
    if speedups:
        result.geomean_speedup = math.exp(statistics.fmean(math.log(s) for s in speedups))
        result.worst_speedup = min(speedups)


def show(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    families = list(dict.fromkeys(name.split("/")[0] for row in result.rows for name in row.microseconds))
    table = Table(title=f"{result.op}, {result.threads} thread(s), median microseconds; a peer's best variant")
    for heading in ("M", "N", "K", *families, "speed-up", "GOP/s", "% ceiling"):
        table.add_column(heading, justify="right")
    for row in result.rows:
        best = [min(us for name, us in row.microseconds.items() if name.split("/")[0] == f) for f in families]
        table.add_row(
            str(row.m),
            str(row.n),
            str(row.k),
            *(f"{us:.1f}" for us in best),
            f"{row.speedup:.2f}x",
            f"{row.gops:.0f}",
            f"{row.percent_of_ceiling:.0f}",
        )
    console.print(table)
    for peer, why in result.missing.items():
        console.print(f"peer {peer} is missing: {why}")
    console.print(f"host: {result.host}; int8 ceiling of one core: {result.ceiling_gops:.0f} GOP/s")
    console.print(
        f"against the best rival per shape: geometric mean {result.geomean_speedup:.2f}x, "
        f"worst {result.worst_speedup:.2f}x"
    )


def sweep_sparse(
    shapes: list[tuple[int, ...]], rounds: int, fresh: sparse.Sweep, out: Path | None, markdown: Path | None, png: Any
) -> None:
    """Runs what is missing in the file `out` and writes what is asked for."""
    sweep = fresh if out is None else sparse.load(out, fresh)

    def save() -> None:
        if out is not None:
            out.write_text(sparse.to_json(sweep))

    sparse.run_sparse([(n, k) for n, k in shapes], sparse.ROWS, rounds, sweep, save)
    if markdown is not None:
        markdown.write_text(sparse.table(sweep))
    if png is not None:
        sparse.plot(sweep, png)
    print(sparse.table(sweep))


def sweep_lowrank(
    shapes: list[tuple[int, ...]], rounds: int, sweep: lowrank.Sweep, out: Path | None, markdown: Path | None, png: Any
) -> None:
    """Runs it and writes what is asked for."""
    lowrank.run(shapes, sweep.threads, rounds, sweep)
    if out is not None:
        out.write_text(lowrank.to_json(sweep))
    if markdown is not None:
        markdown.write_text(lowrank.table(sweep))
    if png is not None:
        lowrank.plot(sweep, png)
    print(lowrank.table(sweep))


def main(
    op: Annotated[str, typer.Option(help="what to compare: linear, conv, sparse or lowrank")] = "linear",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    shapes: Annotated[Path | None, typer.Option(help="file of shapes; default bench/shapes/OP.txt")] = None,
    peers: Annotated[str, typer.Option(help="comma-separated; missing ones are named")] = ",".join(PEERS),
    rounds: Annotated[int | None, typer.Option(min=1, help="by default 15, sparse 5")] = None,
    out: Annotated[Path | None, typer.Option("--json", help="write the result here; sparse goes on with it")] = None,
    markdown: Annotated[Path | None, typer.Option("--table", help="sparse, lowrank: write the table here")] = None,
    png: Annotated[Path | None, typer.Option(help="sparse, lowrank: draw the gains here")] = None,
) -> None:
    """Times tersor's OP against its rivals on this host."""
    if op not in ("linear", "conv", "sparse", "lowrank"):
        raise typer.BadParameter(f"op {op!r} is unknown; there are: linear, conv, sparse, lowrank")
    chosen = [peer for peer in peers.split(",") if peer]
    for peer in chosen:
        if peer not in PEERS:
            raise typer.BadParameter(f"peer {peer!r} is unknown; there are: {', '.join(PEERS)}")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)

    from tersor import kernels
    from tersor.host import describe_host

    command = f"python bench/compare.py {' '.join(sys.argv[1:])}"
    path = shapes or HERE / "shapes" / f"{op}.txt"
    if op == "sparse":
        fresh = sparse.Sweep(op, threads, command, describe_host(), kernels.int8_ceiling())
        sweep_sparse(read_shapes(path, "N K"), rounds or 5, fresh, out, markdown, png)
        return
    if op == "lowrank":
        sweep = lowrank.Sweep(threads, command, describe_host(), kernels.int8_ceiling())
        sweep_lowrank(read_shapes(path, "N K RANK"), rounds or 7, sweep, out, markdown, png)
        return
    if op == "conv":
        rivals = [peer for peer in chosen if peer in conv.BUILDERS]
        convs = conv.Sweep(threads, command, describe_host(), kernels.int8_ceiling())
        conv.run(read_shapes(path, conv.SHAPE), threads, rivals, rounds or 15, convs)
        print(conv.table(convs))
        if out is not None:
            out.write_text(conv.to_json(convs))
        return
    result = Result(op, threads, command, describe_host(), kernels.int8_ceiling(), {})
    run_linear(read_shapes(path), threads, chosen, rounds or 15, result)
    show(result)
    if out is not None:
        out.write_text(json.dumps(asdict(result), indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

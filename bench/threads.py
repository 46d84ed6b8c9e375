"""How layers gain from threads: one and N threads, interleaved in one run.

python bench/threads.py --threads 2 --json out.json
python bench/threads.py --layer sparse_int8 --uneven
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from compare import read_shapes
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROWS = (64, 128, 512)


def make_layer(kind: str, n: int, k: int, uneven: bool) -> Any:
    """A layer of tersor.nn; sparse ones have 80 % zeros in 1x4 blocks, uneven: most values lie in the last rows."""
    import torch
    from torch import nn

    from tersor.nn.registry import REGISTRY

    linear, cls = nn.Linear(k, n), cast(Any, REGISTRY[f"{kind}_linear"])
    if not kind.startswith("sparse"):
        return cls.from_float(linear)
    density = torch.linspace(0, 1, n).pow(3)[:, None] * 0.8 if uneven else torch.full((n, 1), 0.2)
    with torch.no_grad():
        linear.weight *= (torch.rand(n, k // 4) < density).repeat_interleave(4, dim=1)
    return cls.from_float(linear, pattern="1x4")


def turn(layer: Any, x: Any, threads: int, seconds: float = 0.03) -> float:
    """Mean seconds of a call. Torch starts its threads anew when their number changes, so the first calls of a turn,
    which would not occur in a program that keeps to one number, are not timed."""
    import torch

    torch.set_num_threads(threads)
    calls, end = 0, time.perf_counter() + seconds / 4
    while time.perf_counter() < end:
        layer(x)
        calls += 4
    started = time.perf_counter()
    for _ in range(calls):
        layer(x)
    return (time.perf_counter() - started) / calls


def measure(layer_kind: str, uneven: bool, threads: int, rounds: int) -> dict[str, Any]:
    """Median microseconds of each (rows, out_features, in_features) on one thread and on `threads`."""
    import torch

    from tersor.host import describe_host

    rows = []
    shapes = sorted({(n, k) for _, n, k in read_shapes(Path(__file__).parent / "shapes" / "linear.txt")})
    with torch.inference_mode():
        cases = [(m, n, k) for n, k in shapes for m in ROWS]
        for m, n, k in track(cases, description="shapes", console=Console(stderr=True)):
            layer, x = make_layer(layer_kind, n, k, uneven), torch.randn(m, k)
            turns = [(turn(layer, x, 1), turn(layer, x, threads)) for _ in range(rounds)]
            one, many = (statistics.median(times) * 1e6 for times in zip(*turns, strict=True))
            rows.append({"m": m, "n": n, "k": k, "one": one, "many": many, "gain": one / many})
    return {
        "command": f"python bench/threads.py {' '.join(sys.argv[1:])}",
        "threads": threads,
        "layer": layer_kind,
        "host": describe_host(),
        "rows": rows,
    }


def main(
    layer: Annotated[str, typer.Option(help="int8, sparse_int8 or sparse.")] = "int8",
    uneven: Annotated[bool, typer.Option("--uneven", help="Sparse weights whose last rows hold the most.")] = False,
    threads: Annotated[int, typer.Option(min=2, help="Threads of the second contestant.")] = 2,
    rounds: Annotated[int, typer.Option(min=3, help="Turns of each contestant.")] = 15,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Measure and show."""
    if layer not in ("int8", "sparse_int8", "sparse"):
        raise typer.BadParameter(f"{layer!r} is not int8, sparse_int8 or sparse", param_hint="--layer")
    result = measure(layer, uneven, threads, rounds)
    table = Table("M", "N", "K", "1 thread us", f"{threads} threads us", "gain", title=f"{layer}, medians")
    for row in result["rows"]:
        figures = (f"{row['one']:.1f}", f"{row['many']:.1f}", f"{row['gain']:.2f}x")
        table.add_row(str(row["m"]), str(row["n"]), str(row["k"]), *figures)
    Console().print(table)
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

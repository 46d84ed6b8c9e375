"""Weights of 4-bit codes beside tersor's own int8 weights: time, and gigabytes of weight a second.

    python bench/lut4_beside.py --json out.json

Engines take turns call by call. A busy host slows calls at random, so the fastest twentieth of the calls counts. One
row of a large int8 weight runs at the speed of memory (docs/kernels.md): its gigabytes a second are the ceiling.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

SHAPES = [(1, 8192, 8192), (1, 4096, 4096), (4, 4096, 4096), (16, 1024, 1024), (128, 768, 768), (128, 3072, 768)]
GROUPS = (None, 128, 64, 32)


def layers(n: int, k: int) -> dict[str, nn.Module]:
    from tersor.nn import CodebookLinear, Int8Linear
    from tersor.quantize.codebooks import Codes

    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shape = nn.Linear(k, n, bias=False)
    float_layer = shape.to_empty(device="cpu")
    float_layer.weight.data.normal_(generator=generator)
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=generator)
    table = torch.arange(-8, 8, dtype=torch.int8)
    made: dict[str, nn.Module] = {"int8": Int8Linear.from_float(float_layer)}
    for group in GROUPS:
        scale = torch.full((n, 1 if group is None else -(-k // group)), 0.01)
        book = Codes(codes, table, scale, 4, group or k)
        made["4 bits" if group is None else f"4 bits, groups of {group}"] = CodebookLinear.from_codes(float_layer, book)
    return made


def fastest(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Seconds a call, the 5th percentile of calls in turn."""
    laps: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(laps["int8"]) < 20:
        for name, run in runs.items():
            run()  # brings the clock and the branch predictors back
            started = time.perf_counter()
            run()
            laps[name].append(time.perf_counter() - started)
    return {name: float(np.quantile(values, 0.05)) for name, values in laps.items()}


def main(
    threads: Annotated[int, typer.Option(min=1)] = 1,
    seconds: Annotated[float, typer.Option(help="for each shape")] = 4.0,
    rows: Annotated[int, typer.Option(help="only shapes with so many rows; 0: all")] = 0,
    out: Annotated[Path | None, typer.Option("--json", help="write the result here")] = None,
) -> None:
    """Times both for every shape."""
    from tersor.host import describe_host

    torch.set_num_threads(threads)
    result: dict[str, Any] = {"command": f"python bench/lut4_beside.py {' '.join(sys.argv[1:])}"}
    result |= {"host": describe_host(), "rows": []}
    for m, n, k in SHAPES:
        if rows and m != rows:
            continue
        made, x = layers(n, k), torch.randn(m, k)
        sizes = {name: int(layer.packed.numel()) for name, layer in made.items()}  # type: ignore[operator]
        with torch.inference_mode():
            times = fastest({name: functools.partial(layer, x) for name, layer in made.items()}, seconds)
        for name, took in times.items():
            row = {"m": m, "n": n, "k": k, "engine": name, "us": took * 1e6, "over int8": times["int8"] / took}
            row["GB/s"] = sizes[name] / took / 1e9
            result["rows"].append(row)
            print(
                " ".join(f"{key} {value:.4g}" if isinstance(value, float) else str(value) for key, value in row.items())
            )
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

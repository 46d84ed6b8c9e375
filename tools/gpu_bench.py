#!/usr/bin/env python3
"""Times the CUDA kernels and their rivals: `gpu_bench.py ceilings|rows|sparse --json FILE`.

Every case is captured in a CUDA graph that goes through enough copies of its weight to find none of them in L2; the
microseconds are those of one call in a replay. A row: op, dtype, shape [m, n, k], sparsity, rank, kernel, microseconds
(p10, p50, p90), bytes, operations, floor (microseconds, from the measured ceilings), fraction (of the floor),
rivals (microseconds, or why there are none), error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from gpu_cases import CASES, Case, rivals

SHAPES = [(4096, 4096), (14336, 4096), (4096, 14336), (3072, 768)]  # [n, k]
ROWS = [1, 16, 64, 256, 4096]
TINY = (3, 33, 70)
L2_BYTES = 192 << 20  # more than the L2 of any GPU
Call = Callable[[], Any]


def percentiles(samples: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(samples, n=10, method="inclusive")
    return {"p10": round(cuts[0], 3), "p50": round(statistics.median(samples), 3), "p90": round(cuts[-1], 3)}


def timed_cuda(calls: list[Call], repeats: int = 15) -> dict[str, float]:
    """Microseconds of one call, from replays of a graph of all of them."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    samples = []
    for i in range(repeats + 2):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 2:
            samples.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return percentiles(samples)


def timed_cpu(calls: list[Call], repeats: int = 5) -> dict[str, float]:
    samples = []
    for _ in range(repeats):
        started = time.perf_counter()
        for call in calls:
            call()
        samples.append((time.perf_counter() - started) * 1e6 / len(calls))
    return percentiles(samples)


def ceilings(device: str) -> dict[str, float]:
    """What this GPU reaches at best: bytes per second of a copy, operations per second of large products."""
    timed, size = (timed_cuda, 8192) if device == "cuda" else (timed_cpu, 64)
    a, b = (torch.randint(0, 255, (size * size * 16,), dtype=torch.uint8, device=device) for _ in range(2))
    copy = timed([lambda: a.copy_(b)])["p50"]
    x, w = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    half = timed([lambda: x @ w.t()])["p50"]
    q, r = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2))
    integer = timed([lambda: torch._int_mm(q, r.t())])["p50"]
    operations = 2 * size**3
    return {
        "bytes_per_s": 2 * a.numel() / copy * 1e6,
        "bf16_operations_per_s": operations / half * 1e6,
        "int8_operations_per_s": operations / integer * 1e6,
    }


def floor_us(case: Case, limits: dict[str, float]) -> float:
    rate = limits["int8_operations_per_s" if case.integer else "bf16_operations_per_s"]
    return max(case.bytes / limits["bytes_per_s"], case.operations / rate) * 1e6


def measure(case: Case, copies: int, timed: Callable[[list[Call]], dict[str, float]]) -> dict[str, float] | str:
    try:
        return timed([case.make() for _ in range(copies)])
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"


def row_of(case: Case, limits: dict[str, float], device: str) -> dict[str, Any]:
    timed = timed_cuda if device == "cuda" else timed_cpu
    copies = max(2, min(48, L2_BYTES // case.weight_bytes)) if device == "cuda" else 2
    us = measure(case, copies, timed)
    floor = floor_us(case, limits)
    row: dict[str, Any] = {
        "op": case.op, "dtype": case.dtype, "shape": list(case.shape), "sparsity": case.sparsity, "rank": case.rank,
        "kernel": case.kernel, "us": us, "bytes": case.bytes, "operations": case.operations,
        "floor": round(floor, 3),
    }  # fmt: skip
    if isinstance(us, dict):
        row["fraction"] = round(floor / us["p50"], 3)
        row["error"] = case.error()
    return row


Shape = tuple[int, int, int]


def rows_of(
    cases: Iterable[Case], rivals: Iterable[Case], limits: dict[str, float], device: str
) -> list[dict[str, Any]]:
    """The rows of one shape. The float rivals are the same for all cases."""
    against = {case.kernel: row_of(case, limits, device)["us"] for case in rivals}
    rows = []
    for case in cases:
        rows.append({**row_of(case, limits, device), "rivals": against})
        row = rows[-1]
        print(
            row["kernel"],
            row["shape"],
            row["sparsity"],
            row["rank"],
            row["us"],
            row["floor"],
            row.get("error"),
            flush=True,
        )
    return rows


def dense_rows(shape: Shape, limits: dict[str, float], device: str) -> list[dict[str, Any]]:
    made = (make(shape, device) for make in CASES)
    return rows_of((case for case in made if case is not None), rivals(shape, device), limits, device)


def sparse_rows(shape: Shape, limits: dict[str, float], device: str) -> list[dict[str, Any]]:
    import gpu_sparse_cases as sparse

    others = (*rivals(shape, device), *sparse.rivals(shape))
    return rows_of(sparse.cases(shape), others, limits, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ceilings", "rows", "sparse"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("--seconds", type=float, default=90.0, help="start no further shape after this long")
    options = parser.parse_args()
    device = "cpu" if options.emulate else "cuda"
    torch.manual_seed(0)
    limits = ceilings(device)
    found: dict[str, Any] = {"ceilings": limits, "rows": []}
    shapes = [(m, n, k) for n, k in SHAPES for m in ROWS]
    if options.emulate:
        shapes = [TINY]
    elif options.what == "sparse":
        shapes = [(m, n, k) for n, k in SHAPES[:2] for m in (1, 16, 256, 4096)]
    run = sparse_rows if options.what == "sparse" else dense_rows
    started = time.monotonic()
    for shape in shapes if options.what != "ceilings" else []:
        if time.monotonic() - started > options.seconds:
            found["cut_off"] = f"before {list(shape)}"
            break
        found["rows"] += run(shape, limits, device)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
        if device == "cuda":
            torch.cuda.empty_cache()
    options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

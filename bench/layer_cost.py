"""CPU seconds that one layer takes to compress alone, by method and size, on one thread.

    python bench/layer_cost.py

The figures that docs/scale.md reckons with. Work is counted in CPU time, so a busy host changes little.
"""

from __future__ import annotations

import time
from typing import Annotated

import torch
import typer

from tersor.scale import GPTQ, SVD, LayerJob, SparseGPT

JOBS: dict[str, LayerJob] = {"sparsegpt 1x4": SparseGPT(0.5), "gptq 4 bit": GPTQ(4), "svd": SVD(0.9)}


def work(name: str, out: int, inside: int) -> float:
    """Floating-point operations, by the leading terms: factorising the moments, then the columns or the SVD."""
    if name == "svd":
        return 4.0 * out * inside**2 + 13.0 * inside**3
    return 2.0 * inside**3 + 1.0 * out * inside**2


def main(sizes: Annotated[list[int], typer.Option("--size", help="Square layers.")] = [512, 1024, 2048]) -> None:  # noqa: B006
    """Print a table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("method         out x in      CPU s   GFLOP/s")
    for name, job in JOBS.items():
        for size in sizes:
            weight, x = torch.randn(size, size), torch.randn(2 * size, size)
            gram = x.T @ x / len(x) if job.needs_gram else None
            started = time.process_time()
            job.solve(weight, gram)
            spent = time.process_time() - started
            print(f"{name:14} {size} x {size:<6} {spent:7.2f} {work(name, size, size) / spent / 1e9:7.1f}", flush=True)


if __name__ == "__main__":
    typer.run(main)

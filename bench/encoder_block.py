"""One encoder block: its time, where that goes part by part, and the percent of the int8 ceiling of each product.

    python bench/encoder_block.py --threads 1
    python bench/encoder_block.py --hidden 768 --heads 12 --ffn 3072 --shape 1x128 --shape 8x128
    python bench/encoder_block.py --sparsity 0.8
    python bench/encoder_block.py --rank 0.125

The weights are random; the default sizes are those of MiniLM. A product's time holds the quantisation of its input and
its epilogue, and for the first feed-forward product the activation. The parts are those of the first thread.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tersor import kernels
from tersor.host import describe_host

SHAPES = ("1x16", "1x128", "8x128", "32x128")
PRODUCTS = ("qkv", "out", "ffn_in", "ffn_out")


def random_weight(n: int, k: int, sparsity: float, rank: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A packed int8 weight [n, k]: of its 1x4 blocks the given share is zero, or its rank is a part of the full one."""
    if rank > 0:
        thin = max(1, round(rank * min(n, k)))
        factors = [rng.integers(-127, 128, shape, dtype=np.int8) for shape in ((thin, k), (n, thin))]
        scales = [np.full(len(q), 1 / (64 * q.shape[1] ** 0.5), np.float32) for q in factors]
        return kernels.pack_lowrank_s8(factors[0], scales[0], factors[1], scales[1])
    weight = rng.integers(-127, 128, (n, k), dtype=np.int8)
    scale = rng.uniform(0.5, 1.5, n).astype(np.float32) / np.float32(64 * k**0.5)
    if sparsity == 0:
        return kernels.pack_s8(weight, scale)
    blocks = rng.random((n, (k + 3) // 4)) >= sparsity
    return kernels.pack_sparse_s8(weight * np.repeat(blocks, 4, 1)[:, :k], scale)


def random_block(hidden: int, heads: int, ffn: int, sparsity: float, rank: float) -> NDArray[np.uint8]:
    """A packed post-norm encoder block with random weights."""
    rng = np.random.default_rng(0)
    config = {
        "hidden": hidden,
        "heads": heads,
        "head_dim": hidden // heads,
        "ffn": ffn,
        "norm_first": False,
        "activation": "gelu",
        "eps1": 1e-12,
        "eps2": 1e-12,
        "scale": (hidden // heads) ** -0.5,
    }
    extents = ((3 * hidden, hidden), (hidden, hidden), (ffn, hidden), (hidden, ffn))
    weights = [random_weight(n, k, sparsity, rank, rng) for n, k in extents]
    biases = [rng.uniform(-0.3, 0.3, n).astype(np.float32) for n, _ in extents]
    one, zero = np.ones(hidden, np.float32), np.zeros(hidden, np.float32)
    qkv, out, ffn_in, ffn_out = weights
    return kernels.pack_encoder_block(config, qkv, out, ffn_in, ffn_out, biases, [one, zero, one, zero])


def measure(packed: NDArray[np.uint8], batch: int, tokens: int, padding: float, rounds: int) -> dict[str, Any]:
    """Median microseconds of a call and of its parts. `padding`: the share of tokens that are not real."""
    hidden = kernels.inspect_encoder_block(packed)["hidden"]
    rng = np.random.default_rng(1)
    x = rng.standard_normal((batch, tokens, hidden)).astype(np.float32)
    keep = None
    if padding > 0:
        lengths = rng.integers(1, max(2, round(2 * tokens * (1 - padding))), batch).clip(1, tokens)
        keep = np.arange(tokens) < lengths[:, None]
    kernels.encoder_block(x, packed, keep)
    laps, parts = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        kernels.encoder_block(x, packed, keep)
        laps.append(time.perf_counter() - started)
        parts.append(kernels.encoder_block_times(x, packed, keep))
    real = batch * tokens if keep is None else int(keep.sum())
    return {
        "batch": batch,
        "tokens": tokens,
        "real": real,
        "us": 1e6 * statistics.median(laps),
        "fastest_us": 1e6 * min(laps),
        "parts_us": {name: 1e6 * statistics.median(part[name] for part in parts) for name in parts[0]},
    }


def operations(info: dict[str, Any], real: int) -> dict[str, int]:
    """Int8 operations of each product, two a multiply-add, zeros of sparse weights counted too."""
    return {part["name"]: 2 * real * part["n"] * part["k"] for part in info["parts"]}


def show(result: dict[str, Any], info: dict[str, Any]) -> None:
    threads, ceiling = result["threads"], result["ceiling_gops"]
    table = Table(title=f"Encoder block, {threads} thread(s), median microseconds (% of the int8 ceiling of a product)")
    rows = result["rows"]
    table.add_column("part")
    for row in rows:
        table.add_column(f"{row['batch']} x {row['tokens']}", justify="right")
    for name in rows[0]["parts_us"]:
        cells = []
        for row in rows:
            us = row["parts_us"][name]
            share = ""
            if name in PRODUCTS and us > 0:
                gops = operations(info, row["real"])[name] / threads / us * 1e-3
                share = f" ({100 * gops / ceiling:.0f} %)"
            cells.append(f"{us:.0f}{share}")
        table.add_row(name, *cells)
    table.add_row("whole call", *(f"{row['us']:.0f}" for row in rows))
    least = [sum(operations(info, row["real"]).values()) / threads / ceiling * 1e-3 for row in rows]
    table.add_row("products at the ceiling", *(f"{us:.0f}" for us in least))
    console = Console()
    console.print(table)
    console.print(f"host: {result['host']}; int8 ceiling of one core: {ceiling:.0f} GOP/s")


def main(
    threads: Annotated[int, typer.Option(min=1)] = 2,
    hidden: Annotated[int, typer.Option(min=1)] = 384,
    heads: Annotated[int, typer.Option(min=1)] = 12,
    ffn: Annotated[int, typer.Option(min=1)] = 1536,
    sparsity: Annotated[float, typer.Option(min=0, max=1, help="of the weights, in 1x4 blocks")] = 0.0,
    rank: Annotated[float, typer.Option(min=0, max=1, help="part of the full rank; 0: not factored")] = 0.0,
    padding: Annotated[float, typer.Option(min=0, max=0.99, help="share of the tokens that are padding")] = 0.0,
    shape: Annotated[list[str] | None, typer.Option(help="BATCHxTOKENS, may be given often")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    out: Annotated[Path | None, typer.Option("--json", help="write the result here")] = None,
) -> None:
    """Times one encoder block on this host."""
    if hidden % heads:
        raise typer.BadParameter(f"hidden={hidden} is not a multiple of heads={heads}")
    kernels.set_threads(threads)
    packed = random_block(hidden, heads, ffn, sparsity, rank)
    info = kernels.inspect_encoder_block(packed)
    result: dict[str, Any] = {
        "command": f"python bench/encoder_block.py {' '.join(sys.argv[1:])}",
        "host": describe_host(),
        "threads": threads,
        "ceiling_gops": kernels.int8_ceiling(),
        "rows": [],
    }
    for text in shape or SHAPES:
        batch, tokens = (int(number) for number in text.split("x"))
        result["rows"].append(measure(packed, batch, tokens, padding, rounds))
    show(result, info)
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

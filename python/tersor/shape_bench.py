"""The int8 layer on a list of shapes, against torch float and torch's dynamic int8, interleaved."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tersor import host, text
from tersor._native import core
from tersor.benchmark import interleave, torch_threads
from tersor.nn import Int8Linear
from tersor.progress import track
from tersor.torch_int8 import dynamic_int8, engines

SCHEMA = "tersor.bench/1"
SHAPES = (
    (1, 384, 384), (1, 1536, 384), (16, 384, 384), (128, 384, 384), (128, 1536, 384), (128, 384, 1536),
    (1, 768, 768), (128, 768, 768), (128, 3072, 768), (512, 1024, 1024), (1, 4096, 4096),
)  # fmt: skip
"""(rows, out_features, in_features) of layers of common encoders."""


@dataclasses.dataclass(frozen=True)
class ShapeRow:
    """One shape.

    Attributes:
        m, n, k: rows, out_features, in_features.
        kernel: id of the int8 kernel.
        us: median microseconds per call by contestant.
        gops: int8 operations (2 m n k) per nanosecond of tersor.
        speedup: time of the best rival over that of tersor.
    """

    m: int
    n: int
    k: int
    kernel: str
    us: dict[str, float]
    gops: float
    speedup: float


@dataclasses.dataclass(frozen=True)
class ShapeBench:
    """What :func:`bench_shapes` measured.

    Attributes:
        rows: one per shape.
        threads: torch threads.
        host: CPU, instruction set, versions.
        geomean: geometric mean of the speed-ups over the best rival.
    """

    rows: tuple[ShapeRow, ...]
    threads: int
    host: dict[str, str]
    geomean: float

    def table(self, width: int = 100, color: bool = False) -> str:
        """One line per shape, as text of at most ``width`` columns."""
        names = list(self.rows[0].us)
        table = text.plain_table("m x n x k", *(f"{name} us" for name in names), "GOP/s", "vs best")
        for row in self.rows:
            times = [text.microseconds(row.us[name]) for name in names]
            table.add_row(f"{row.m} x {row.n} x {row.k}", *times, f"{row.gops:.0f}", f"{row.speedup:.2f}x")
        mean = f"Geometric mean: {self.geomean:.2f}x as fast as the best of the others, quantisation included."
        kernels = ", ".join(dict.fromkeys(row.kernel for row in self.rows))
        how = f"Interleaved medians, {self.threads} threads, {self.host['cpu']}, {kernels}, torch {self.host['torch']}."
        return text.render(table, mean, how, width=width, color=color)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a ``schema`` key."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    def to_json(self, path: str | Path | None = None) -> str:
        """The result as JSON text, also written to ``path`` where one is given."""
        content = json.dumps(self.to_dict(), indent=2) + "\n"
        if path is not None:
            text.write(path, content)
        return content


def bench_shapes(
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    *,
    threads: int | None = None,
    rounds: int = 15,
    progress: bool = True,
) -> ShapeBench:
    """Time fp32-in, fp32-out linear layers with bias on random numbers.

    Args:
        shapes: (rows, out_features, in_features) of each.
        threads: torch threads; None leaves them.
        rounds: how often each contestant takes its turn of about 3 ms.
        progress: a progress bar on a terminal.

    Raises:
        TersorError: fewer than one thread.
        NativeError: the compiled part is missing.
    """
    with torch_threads(threads), torch.inference_mode():
        rows = tuple(_row(*shape, rounds) for shape in track(shapes, "timing shapes", shown=progress))
        count = torch.get_num_threads()
    geomean = math.exp(math.fsum(math.log(row.speedup) for row in rows) / len(rows))
    return ShapeBench(rows, count, host.describe_host(), geomean)


def _row(m: int, n: int, k: int, rounds: int) -> ShapeRow:
    torch.manual_seed(0)
    layer, x = nn.Linear(k, n), torch.randn(m, k)
    own = Int8Linear.from_float(layer)
    runs: dict[str, Callable[[], Any]] = {"float": lambda: layer(x)}
    if found := engines():
        rival = next(dynamic_int8(nn.Sequential(layer), found[0]).children())
        runs["torch int8"] = lambda: rival(x)
    runs["tersor"] = lambda: own(x)
    laps = interleave(runs, rounds=rounds, turn_seconds=3e-3)
    us = {name: lap.median * 1e6 for name, lap in laps.items()}
    best = min(value for name, value in us.items() if name != "tersor")
    kernel = core().inspect_s8(own.packed.numpy())["kernel"]
    return ShapeRow(m, n, k, kernel, us, 2e-3 * m * n * k / us["tersor"], best / us["tersor"])

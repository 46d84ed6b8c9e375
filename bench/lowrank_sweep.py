"""Low-rank layers against two torch linears and the dense layers, interleaved; part of compare.py."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROWS = (1, 4, 8, 16, 64, 128, 256)
NAMES = {
    "torch dense": "dense fp32",
    "torch two": "two linears, fp32",
    "torch two int8": "two linears, int8",
    "tersor dense int8": "Int8Linear",
    "tersor f32": "lowrank_f32",
    "tersor s8": "lowrank_s8",
}


@dataclass
class Row:
    """Microseconds of one shape at one number of rows."""

    m: int
    n: int
    k: int
    rank: int
    us: dict[str, float]

    def gops(self, name: str) -> float:
        """Operations per nanosecond, a multiply-add being two."""
        return 2e-3 * self.m * self.rank * (self.n + self.k) / self.us[name]


@dataclass
class Sweep:
    threads: int
    command: str
    host: dict[str, str]
    int8_ceiling: float
    rows: list[Row] = field(default_factory=list)

    @property
    def f32_ceiling(self) -> float:
        """Of one core: a fused multiply-add does 16 values where the int8 instruction does 64, at the same rate."""
        return self.int8_ceiling / 4


def run(shapes: list[tuple[int, ...]], threads: int, rounds: int, sweep: Sweep) -> None:
    """Measure every shape at every number of rows, all contestants taking turns."""
    import torch
    from torch import nn

    from tersor.benchmark import interleave
    from tersor.factorize import FactoredLinear
    from tersor.nn import Int8Linear, LowRankInt8Linear, LowRankLinear
    from tersor.torch_int8 import dynamic_int8, engines

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for n, k, rank in shapes:
        dense, first, second = nn.Linear(k, n), nn.Linear(k, rank, bias=False), nn.Linear(rank, n)
        factored = FactoredLinear.from_factors(first.weight, second.weight, second.bias)
        two = nn.Sequential(first, second).eval()
        made: dict[str, Callable[[Any], Any]] = {"torch dense": dense, "torch two": two}
        if found := engines():
            made["torch two int8"] = dynamic_int8(two, found[0])
        made["tersor dense int8"] = Int8Linear.from_float(dense)
        made["tersor f32"] = LowRankLinear.from_float(factored)
        made["tersor s8"] = LowRankInt8Linear.from_float(factored)
        for m in ROWS:
            x = torch.randn(m, k)
            runs = {name: functools.partial(layer, x) for name, layer in made.items()}
            with torch.inference_mode():
                expected = two(x)
                for name, limit in (("tersor f32", 1e-5), ("tersor s8", 0.03)):
                    off = float((runs[name]() - expected).norm() / expected.norm())
                    if off > limit:
                        raise SystemExit(f"{name} at {m}, {n}, {k}, {rank} is off by {off:.3g}")
                laps = interleave(runs, rounds=rounds)
            us = {name: lap.median * 1e6 for name, lap in laps.items()}
            sweep.rows.append(Row(m, n, k, rank, us))


def table(sweep: Sweep) -> str:
    """Microseconds, gains, and percent of the ceilings, as Markdown."""
    names = list(sweep.rows[0].us)
    heads = [
        *(NAMES[name] for name in names),
        "f32 over two",
        "f32 over dense",
        "s8 over two",
        "s8 over f32",
        "f32 of ceiling",
        "s8 of ceiling",
    ]
    lines = ["| M,N,K,R | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for row in sweep.rows:
        us, cores = row.us, sweep.threads
        f32, s8 = us["tersor f32"], us["tersor s8"]
        cells = [f"{us[name]:.0f}" if us[name] >= 100 else f"{us[name]:.1f}" for name in names]
        cells += [f"{us['torch two'] / f32:.2f}", f"{us['torch dense'] / f32:.2f}", f"{us['torch two'] / s8:.2f}"]
        cells += [f"{f32 / s8:.2f}", f"{100 * row.gops('tersor f32') / (cores * sweep.f32_ceiling):.0f} %"]
        cells += [f"{100 * row.gops('tersor s8') / (cores * sweep.int8_ceiling):.0f} %"]
        lines.append(f"| {row.m},{row.n},{row.k},{row.rank} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def to_json(sweep: Sweep) -> str:
    """All that was measured."""
    return json.dumps(asdict(sweep), indent=1) + "\n"


def plot(sweep: Sweep, path: Path) -> None:
    """How many times as fast as two torch linears, over the number of rows."""
    from matplotlib import pyplot

    shapes = list(dict.fromkeys((row.n, row.k, row.rank) for row in sweep.rows))
    figure, axes = pyplot.subplots(1, len(shapes), figsize=(4 * len(shapes), 3.6), sharey=True, squeeze=False)
    for axis, shape in zip(axes[0], shapes, strict=True):
        rows = [row for row in sweep.rows if (row.n, row.k, row.rank) == shape]
        for name in ("torch dense", "torch two int8", "tersor dense int8", "tersor f32", "tersor s8"):
            if name in rows[0].us:
                gains = [row.us["torch two"] / row.us[name] for row in rows]
                axis.plot([row.m for row in rows], gains, "o-", label=NAMES[name])
        axis.set(xscale="log", yscale="log", xlabel="rows", title=f"{shape[0]}x{shape[1]}, rank {shape[2]}")
        axis.axhline(1, color="grey", lw=0.8)
        axis.set_xticks([row.m for row in rows], [str(row.m) for row in rows])
        axis.minorticks_off()
        axis.set_yticks([0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"])
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("times as fast as two torch linears")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)

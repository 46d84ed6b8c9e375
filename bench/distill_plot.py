"""The picture of bench/distill_fashion.py: every student, and the means."""

from __future__ import annotations

import statistics
from pathlib import Path


def plot(blocks: dict[str, dict[str, list[dict[str, float]]]], teacher: float, path: Path) -> None:
    """One panel per block of ways, one row per way."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    heights = [len(rows) for rows in blocks.values()]
    figure, panels = pyplot.subplots(
        len(blocks), 1, figsize=(8, 0.36 * sum(heights) + 1.6), layout="constrained", height_ratios=heights, sharex=True
    )
    for axes, (block, rows) in zip(panels, blocks.items(), strict=True):
        for at, found in enumerate(rows.values()):
            values = [100 * one["accuracy"] for one in found]
            axes.plot(values, [at] * len(values), "o", color="#888888", markersize=4)
            axes.plot(statistics.mean(values), at, "D", color="#0b6e4f", markersize=7)
        axes.axvline(100 * teacher, color="#b06d00", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.set_title(block, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("accuracy on the test pictures, %; diamonds: means; dashed: the teacher")
    figure.savefig(path, dpi=110)

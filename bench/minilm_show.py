"""MiniLM-L6 in every compressed form: quality, size and latency in one table and one plot.

python bench/minilm_show.py --file sparse=sparse.tersor --file small=small.tersor --json out.json
python bench/minilm_show.py --file sparse=sparse.tersor --file small=small.tersor --json out.json --timing --png out.png

The files are those that `tersor compress` writes, see bench/minilm_data.py. The first call judges and keeps the dense
int8 and the low-rank model beside the JSON file; the second one times all of them, taking turns.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated, Any

import minilm_data
import torch
import typer
from minilm_task import Judge, build
from torch import nn

import tersor
from tersor import demo_data, steps
from tersor.benchmark import interleave
from tersor.host import describe_host
from tersor.recipe import Step

FIGURES = ("cosine_lee", "cosine_r8", "lee", "wordsim", "r8")


def made(model: nn.Module, folder: Path) -> dict[str, Path]:
    """The dense int8 and the low-rank int8 model as files."""
    low = steps.Factorize(method="asvd", ratio=0.75, kernel="int8")
    recipes: dict[str, list[Step]] = {"dense int8": [steps.Quantize()], "low rank int8": [low, steps.Quantize()]}
    files = {}
    for name, parts in recipes.items():
        files[name] = folder / f"minilm-{name.replace(' ', '-')}.tersor"
        if not files[name].exists():
            data = minilm_data.data()
            data.pop("train")
            recipe = tersor.Recipe(parts, include=["encoder.*"])
            tersor.save(tersor.compress(model, recipe, force=True, **data).model, files[name])
    return files


def loaded(path: Path) -> nn.Module:
    """The model of a file."""
    return tersor.load(path, model=minilm_data.model()).eval()


def judged(model: nn.Module, files: dict[str, Path]) -> dict[str, Any]:
    """Quality and size of each."""
    _, tokenizer = demo_data.load_model(demo_data.model_folder())
    judge = Judge(build(tokenizer), model, torch.device("cpu"))
    rows = {"float": {"bytes": None, **judge(model)}}
    for name, path in files.items():
        rows[name] = {"bytes": path.stat().st_size, **judge(loaded(path))}
        print(name, rows[name], flush=True)
    return rows


def timed(model: nn.Module, files: dict[str, Path], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds by (batch x tokens) and model."""
    models = {"float": model, **{name: loaded(path) for name, path in files.items()}}
    found = {}
    with torch.inference_mode():
        for batch, tokens in minilm_data.SHAPES:
            inputs = demo_data.random_batch(batch, tokens)
            runs = {name: functools.partial(one, **inputs) for name, one in models.items()}
            laps = interleave(runs, rounds=rounds, turn_seconds=0.02)
            found[f"{batch} x {tokens}"] = {name: lap.median * 1e3 for name, lap in laps.items()}
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| model | MB | cosine Lee | cosine R8 | Lee | WordSim | R8 |", "|---|---|---|---|---|---|---|"]
    for name, row in found["models"].items():
        size = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}"
        lines.append(f"| {name} | {size} | " + " | ".join(f"{row[key]:.3f}" for key in FIGURES) + " |")
    for shape, ms in found.get("ms", {}).items():
        if shape == next(iter(found["ms"])):
            lines += ["", "| batch x tokens | " + " | ".join(ms) + " |", "|---" * (len(ms) + 1) + "|"]
        dense = ms["dense int8"]
        lines.append(f"| {shape} | " + " | ".join(f"{one:.2f} ({dense / one:.2f}x)" for one in ms.values()) + " |")
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """R8 and Lee against the latency at 8 x 128."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    titles = {"r8": "R8, accuracy of a probe", "lee": "Lee, Pearson", "cosine_r8": "cosine to float, R8"}
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for index, (name, row) in enumerate(found["models"].items()):
            x, y = found["ms"]["8 x 128"][name], row[key]
            panel.plot(x, y, "o", markersize=9)
            panel.annotate(name, (x, y), textcoords="offset points", xytext=(6, -15 if index % 2 else 7), fontsize=9)
        panel.axhline(found["models"]["float"][key], color="gray", linewidth=0.8, linestyle=":")
        panel.set(title=title, xlabel="milliseconds, 8 x 128 tokens", xscale="log")
        panel.set_xticks([20, 50, 100, 200, 400], ["20", "50", "100", "200", "400"])
        panel.minorticks_off()
        panel.margins(0.25)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main(
    file: Annotated[list[str], typer.Option(help="NAME=FILE, a compressed model; several.")],
    json_path: Annotated[Path, typer.Option("--json", help="Results.")],
    timing: Annotated[bool, typer.Option("--timing", help="Time only; quality comes from the JSON file.")] = False,
    png: Annotated[Path | None, typer.Option(help="The plot.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Judge or time the float model, its dense int8 and low-rank twins, and the given files."""
    torch.set_num_threads(threads)
    model, _ = demo_data.load_model(demo_data.model_folder())
    model.eval()
    files = made(model, json_path.parent)
    files |= {name: Path(path) for name, _, path in (one.partition("=") for one in file)}
    if timing:
        found = json.loads(json_path.read_text(encoding="utf-8"))
        found |= {"threads": threads, "ms": timed(model, files, rounds)}
    else:
        found = {"host": describe_host(), "models": judged(model, files)}
    json_path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    if png is not None:
        plot(found, png)


if __name__ == "__main__":
    typer.run(main)

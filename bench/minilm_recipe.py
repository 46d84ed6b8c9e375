"""MiniLM-L6 through a whole recipe: pruned in 1x4 blocks, recovered on texts without labels, int8, saved; beside it the
dense int8 model of the same host, in one run.

python bench/minilm_recipe.py --sparsity 0.8 --steps 300 --threads 2 --out minilm-sparse.tersor --json out.json
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from minilm_task import Judge, build
from recover import LENGTHS, Crops
from rich.console import Console
from rich.table import Table
from torch import Tensor

import tersor
from tersor import demo_data, steps
from tersor.benchmark import interleave
from tersor.host import describe_host

SHAPES = ((1, 16), (1, 128), (8, 128), (32, 128))  # batch, tokens


class Texts:
    """Batches of crops of texts without labels, the same in every pass; they know their number."""

    def __init__(self, crops: Crops, count: int, tokens: int) -> None:
        self.crops, self.count, self.tokens = crops, count, tokens

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        random = torch.Generator().manual_seed(0)
        lengths, shares = zip(*LENGTHS, strict=True)
        for _ in range(self.count):
            length = lengths[int(torch.multinomial(torch.tensor(shares), 1, generator=random))]
            ids = self.crops.draw(length, max(4, self.tokens // length), random, replaced=0.15)
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def main(
    sparsity: Annotated[float, typer.Option(min=0.01, max=0.99)] = 0.8,
    criterion: Annotated[str, typer.Option(help="A criterion of steps.Prune that needs no labels.")] = "sparsegpt",
    count: Annotated[int, typer.Option("--steps", min=1, help="Of recovery.")] = 300,
    tokens: Annotated[int, typer.Option(min=64, help="Per step.")] = 4096,
    learning_rate: Annotated[float, typer.Option(min=0)] = 5e-4,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    out: Annotated[Path, typer.Option(help="The sparse model's file; the dense one's lies beside it.")] = Path(
        "minilm-sparse.tersor"
    ),
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Compress twice, save, load in fresh models, measure, judge."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, tokenizer = demo_data.load_model(demo_data.model_folder())
    task, device = build(tokenizer), torch.device("cpu")
    judge, crops = Judge(task, model, device), Crops(task.recovery, device)
    example, *others = (demo_data.random_batch(batch, length) for batch, length in SHAPES[:3])
    begin = time.perf_counter()
    made = {"dense int8": steps.Quantize(), "sparse int8": steps.Quantize()}
    files = {"dense int8": out.with_name(f"dense-{out.name}"), "sparse int8": out}
    for name, quantize in made.items():
        prune = steps.Prune(criterion, "1x4", sparsity, learning_rate=learning_rate)
        recipe = tersor.Recipe([quantize] if name == "dense int8" else [prune, quantize], include=["encoder.*"])
        data: dict[str, Any] = {"calibration": Texts(crops, 16, 1024), "other_inputs": others}
        if name == "sparse int8":
            data["train"] = Texts(crops, count, tokens)
        result = tersor.compress(model, recipe, example, **data)
        tersor.save(result.model, files[name])
        Console(stderr=True).print(f"{name}: {'; '.join(result.report.notes)}")
    loaded = {name: tersor.load(path) for name, path in files.items()}
    contestants = {"float": model.eval(), **{name: one.eval() for name, one in loaded.items()}}
    quality = {name: judge(one) for name, one in contestants.items()}
    found = {
        "command": f"python bench/minilm_recipe.py {' '.join(sys.argv[1:])}",
        "host": describe_host(),
        "seconds": time.perf_counter() - begin,
        "bytes": {name: path.stat().st_size for name, path in files.items()},
        "quality": quality,
        "ms": latencies(contestants),
    }
    show(found, threads)
    if json_path is not None:
        json_path.write_text(json.dumps(found, indent=1) + "\n")


def latencies(contestants: dict[str, Any], rounds: int = 7) -> dict[str, dict[str, float]]:
    """Median milliseconds of each model at each (batch, tokens), taking turns."""
    found = {}
    with torch.inference_mode():
        for batch, length in SHAPES:
            inputs = demo_data.random_batch(batch, length)
            runs = {name: functools.partial(one, **inputs) for name, one in contestants.items()}
            laps = interleave(runs, rounds=rounds, turn_seconds=0.05)
            found[f"{batch} x {length}"] = {name: lap.median * 1e3 for name, lap in laps.items()}
    return found


def show(found: dict[str, Any], threads: int) -> None:
    """The result as two tables."""
    table = Table("model", "MB", *next(iter(found["quality"].values())), title="What is left of the float model")
    for name, figures in found["quality"].items():
        size = f"{found['bytes'][name] / 1e6:.1f}" if name in found["bytes"] else "-"
        table.add_row(name, size, *(f"{value:.3f}" for value in figures.values()))
    Console().print(table)
    table = Table("batch x tokens", *found["quality"], "gain", title=f"milliseconds, {threads} thread(s)")
    for shape, ms in found["ms"].items():
        gain = f"{ms['dense int8'] / ms['sparse int8']:.2f}x"
        table.add_row(shape, *(f"{value:.2f}" for value in ms.values()), gain)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)

"""A small student for Fashion-MNIST with and without a teacher: many labels, few labels, and why it helps or not.

    python bench/distill_fashion.py --json bench/results/distill-fashion.json --plot bench/results/distill-fashion.png

Needs Debian's dataset-fashion-mnist. Teachers are trained once on all pictures. All students of a block take the same
number of optimiser steps; a seed draws their first weights, their order of pictures and which pictures have labels.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from distill_plot import plot
from prune_fashion import FOLDER, Data, accuracy, read, train
from prune_minilm import device_name
from torch import Tensor, nn

from tersor.distill import fit

FEATURES = {"1": "1", "4": "4"}
"""The activations of both convolutions."""

HARD = {"loss": "label"}
KL = {"loss": "kl", "temperature": 4.0}
HINT = {"loss": "hint", "layers": FEATURES}
ATTENTION = {"loss": "attention_transfer", "layers": FEATURES}
LOGITS = {"loss": "logits_mse", "weight": 0.1}

FEW, SOME, ALL = 1_000, 5_000, 60_000
Way = tuple[list[Any], int, str, int]
"""Losses, pictures, teacher, and steps as a part of --steps in percent."""

BLOCKS: dict[str, dict[str, Way]] = {
    f"{FEW:,} labels, {ALL:,} pictures": {
        "labels alone": ([HARD], FEW, "good", 100),
        "labels and kl, labelled pictures": ([HARD, KL], FEW, "good", 100),
        "labels and hint, labelled pictures": ([HARD, HINT], FEW, "good", 100),
        "kl, all pictures, no labels": ([KL], ALL, "good", 100),
        "kl and hint, all pictures, no labels": ([KL, HINT], ALL, "good", 100),
    },
    f"{ALL:,} labels": {
        "labels alone": ([HARD], ALL, "good", 100),
        "labels and kl": ([HARD, KL], ALL, "good", 100),
        "labels and logits_mse": ([HARD, LOGITS], ALL, "good", 100),
        "labels and hint": ([HARD, HINT], ALL, "good", 100),
        "labels and attention_transfer": ([HARD, ATTENTION], ALL, "good", 100),
    },
    f"{SOME:,} labels": {
        "short, labels alone": ([HARD], SOME, "good", 10),
        "short, labels and kl, weak teacher": ([HARD, KL], SOME, "weak", 10),
        "short, labels and kl": ([HARD, KL], SOME, "good", 10),
        "long, labels alone": ([HARD], SOME, "good", 100),
        "long, labels and kl, weak teacher": ([HARD, KL], SOME, "weak", 100),
        "long, labels and kl": ([HARD, KL], SOME, "good", 100),
    },
}


class Mixed:
    """As many batches as asked for, the pictures in a new order each time that all have been seen."""

    def __init__(self, data: Data, size: int, steps: int) -> None:
        self._data, self._size, self._steps = data, size, steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        left = torch.empty(0, dtype=torch.int64)
        for _ in range(self._steps):
            if len(left) < self._size:
                left = torch.cat([left, torch.randperm(len(self._data[0]))])
            part, left = left[: self._size], left[self._size :]
            yield self._data[0][part], self._data[1][part]


def network(width: int, hidden: int) -> nn.Module:
    """Two convolutions and two linear layers: 105,866 parameters with 16 and 64, 13,242 with 4 and 32."""
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(98 * width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def teach(ways: list[Any], teacher: nn.Module, data: Data, steps: int, size: int, seed: int) -> nn.Module:
    """Train a student."""
    torch.manual_seed(seed)
    model = network(4, 32)
    fit(
        model,
        teacher,
        Mixed(data, size, steps),
        ways,
        labels=1,
        seed=seed,
        rate="cosine",
        warmup=0.05,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=4e-3, weight_decay=1e-4),
        progress=False,
    )
    return model


def make_teachers(data: Data, test: Data, epochs: int) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """A weak teacher of two epochs and a good one, with what they know and how sure they are of it."""
    teachers, known = {}, {}
    for name, long in (("weak", 2), ("good", epochs)):
        torch.manual_seed(0)
        teachers[name] = network(16, 64)
        train(teachers[name], data, long, 2e-3)
        with torch.no_grad():
            sure = teachers[name](data[0][:10_000]).softmax(1).amax(1).mean()
        known[name] = {"epochs": long, "accuracy": accuracy(teachers[name], test), "sure": float(sure)}
        known[name]["accuracy, training"] = accuracy(teachers[name], (data[0][:10_000], data[1][:10_000]))
        print(f"{name} teacher {known[name]}", flush=True)
    return teachers, known


def summary(rows: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """A line per way: mean, deviation, and the same of the difference from the labels alone at equal seeds."""
    first: list[float] = []
    for name, found in rows.items():
        values = [100 * one["accuracy"] for one in found]
        first = values if name.endswith("labels alone") else first
        gains = [one - two for one, two in zip(values, first, strict=False)]
        spread, gain = (statistics.stdev(some) if len(some) > 1 else 0.0 for some in (values, gains))
        seen = statistics.mean(100 * one["seen"] for one in found)
        yield (
            f"{name:38} {statistics.mean(values):.2f} +- {spread:.2f}  seen {seen:.2f}  "
            f"against labels {statistics.mean(gains):+.2f} +- {gain:.2f}  {[round(one, 2) for one in values]}"
        )


def main(
    seeds: Annotated[int, typer.Option(help="Students of each kind.")] = 3,
    steps: Annotated[int, typer.Option(help="Of a student; the short ones take a tenth.")] = 2400,
    size: Annotated[int, typer.Option(help="Pictures in a batch.")] = 128,
    teaching: Annotated[int, typer.Option(help="Epochs of the good teacher, on 60,000 pictures.")] = 10,
    folder: Annotated[Path, typer.Option(help="Of the idx files.")] = FOLDER,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    out: Annotated[Path | None, typer.Option("--json", help="Results, written after every student.")] = None,
    picture: Annotated[Path | None, typer.Option("--plot", help="A PNG file.")] = None,
) -> None:
    """Train, print accuracies."""
    torch.set_num_threads(threads)
    began, device = time.process_time(), torch.device("cpu")
    data, test = read(folder, device, ALL)
    teachers, known = make_teachers(data, test, teaching)
    result: dict[str, Any] = {
        "command": f"python bench/distill_fashion.py {' '.join(sys.argv[1:])}",
        "device": device_name(device),
        "teachers": known,
        "parameters": {"teacher": 105_866, "student": sum(p.numel() for p in network(4, 32).parameters())},
        "steps": steps,
        "batch": size,
        "blocks": {name: {way: [] for way in ways} for name, ways in BLOCKS.items()},
    }
    for seed in range(seeds):
        for block, ways in BLOCKS.items():
            for name, (losses, pictures, teacher, part) in ways.items():
                start = seed * pictures % ALL
                seen = (data[0][start : start + pictures], data[1][start : start + pictures])
                student = teach(losses, teachers[teacher], seen, steps * part // 100, size, seed)
                found = {
                    "accuracy": accuracy(student, test),
                    "seen": accuracy(student, (seen[0][:5000], seen[1][:5000])),
                }
                result["blocks"][block][name].append(found)
                spent = time.process_time() - began
                print(f"seed {seed} {block:28} {name:38} {found}  {spent:.0f} s of CPU", flush=True)
                if out is not None:
                    out.write_text(json.dumps(result, indent=1) + "\n")
    for block, rows in result["blocks"].items():
        print(block, *summary(rows), sep="\n")
    if picture is not None:
        plot(result["blocks"], known["good"]["accuracy"], picture)


if __name__ == "__main__":
    typer.run(main)

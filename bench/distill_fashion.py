"""A small student for Fashion-MNIST with and without a teacher, logits against features, over several seeds.

    python bench/distill_fashion.py --json bench/results/distill-fashion.json --plot bench/results/distill-fashion.png

Needs Debian's dataset-fashion-mnist. The teacher is trained once on all images; students see fewer of them.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from prune_fashion import FOLDER, Data, accuracy, read, train
from prune_minilm import device_name
from torch import nn

from tersor.distill import fit

FEATURES = {"1": "1", "4": "4"}
"""The activations of both convolutions."""

HARD = {"loss": "label"}
WAYS: dict[str, list[Any]] = {
    "labels alone": [HARD],
    "kl": [HARD, {"loss": "kl", "temperature": 4.0}],
    "logits_mse": [HARD, {"loss": "logits_mse", "weight": 0.1}],
    "hint": [HARD, {"loss": "hint", "layers": FEATURES}],
    "attention_transfer": [HARD, {"loss": "attention_transfer", "layers": FEATURES}],
    "kl, no labels": [{"loss": "kl", "temperature": 4.0}],
}
"""Label -> losses."""


def network(width: int, hidden: int) -> nn.Module:
    """Two convolutions and two linear layers: 105,866 parameters with 16 and 64, 13,242 with 4 and 32."""
    return nn.Sequential(
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


def teach(ways: list[Any], teacher: nn.Module, data: Data, test: Data, epochs: int, seed: int) -> float:
    """Train a student and tell its accuracy."""
    torch.manual_seed(seed)
    model = network(4, 32)
    batches = list(zip(torch.split(data[0], 64), torch.split(data[1], 64), strict=True))
    fit(
        model,
        teacher,
        batches,
        ways,
        labels=1,
        epochs=epochs,
        seed=seed,
        rate="cosine",
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=4e-3, weight_decay=1e-4),
        progress=False,
    )
    return accuracy(model, test)


def plot(rows: dict[str, list[float]], float_accuracy: float, path: Path) -> None:
    """Mean and range of every way."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    for at, found in enumerate(rows.values()):
        axes.plot([100 * value for value in found], [at] * len(found), "o", color="#888888", markersize=4)
        axes.plot(100 * statistics.mean(found), at, "D", color="#0b6e4f", markersize=8)
    axes.axvline(100 * float_accuracy, color="#b06d00", linestyle="--", linewidth=1, label="teacher")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on the test images, %; diamonds: means")
    axes.legend(loc="center right", bbox_to_anchor=(0.97, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main(
    seeds: Annotated[int, typer.Option(help="Students of each kind.")] = 3,
    images: Annotated[int, typer.Option(help="That students see.")] = 10_000,
    epochs: Annotated[int, typer.Option(help="Of each student.")] = 6,
    teaching: Annotated[int, typer.Option(help="Epochs of the teacher, on 60,000 images.")] = 3,
    folder: Annotated[Path, typer.Option(help="Of the idx files.")] = FOLDER,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    out: Annotated[Path | None, typer.Option("--json", help="Results, written after every student.")] = None,
    picture: Annotated[Path | None, typer.Option("--plot", help="A PNG file.")] = None,
) -> None:
    """Train, print accuracies."""
    torch.set_num_threads(threads)
    began, device = time.process_time(), torch.device("cpu")
    data, test = read(folder, device, 60_000)
    few = (data[0][:images], data[1][:images])
    torch.manual_seed(0)
    teacher = network(16, 64)
    train(teacher, data, teaching, 2e-3)
    best = accuracy(teacher, test)
    print(f"teacher {best:.4f}, {time.process_time() - began:.0f} s of CPU", flush=True)
    result: dict[str, Any] = {
        "command": f"python bench/distill_fashion.py {' '.join(sys.argv[1:])}",
        "device": device_name(device),
        "teacher": {"accuracy": best, "parameters": sum(p.numel() for p in teacher.parameters())},
        "student": {
            "parameters": sum(p.numel() for p in network(4, 32).parameters()),
            "images": images,
            "epochs": epochs,
        },
        "accuracies": {},
    }
    for seed in range(seeds):
        for name, losses in WAYS.items():
            found = teach(losses, teacher, few, test, epochs, seed)
            result["accuracies"].setdefault(name, []).append(found)
            print(f"seed {seed} {name:20} {found:.4f}  {time.process_time() - began:.0f} s", flush=True)
            if out is not None:
                out.write_text(json.dumps(result, indent=1) + "\n")
    for name, found in result["accuracies"].items():
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        print(f"{name:20} {statistics.mean(found):.4f} +- {spread:.4f}")
    if picture is not None:
        plot(result["accuracies"], best, picture)


if __name__ == "__main__":
    typer.run(main)

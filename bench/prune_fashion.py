"""Every pruning criterion on two networks for Fashion-MNIST, trained here: accuracy at once and after fine-tuning.

    python bench/prune_fashion.py --network cnn --json out.json --device cuda

Needs Debian's dataset-fashion-mnist. Each network is trained once; each run prunes a copy at once and fine-tunes it.
"""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from prune_minilm import device_name
from torch import Tensor, nn
from torch.nn import functional

from tersor.prune import CRITERIA, Pruner

FOLDER = Path("/usr/share/datasets/fashion-mnist")
Data = tuple[Tensor, Tensor]
"""Images [n, 1, 28, 28] with mean 0 and deviation 1, and class numbers [n]."""


def cnn() -> nn.Module:
    """Two convolutions and two linear layers, 421,642 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def mlp() -> nn.Module:
    """784-256-128-10, 235,146 parameters."""
    layers = (nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    return nn.Sequential(nn.Flatten(), *layers)


NETWORKS = {"cnn": cnn, "mlp": mlp}
PRUNED = {"cnn": ["3", "7"], "mlp": ["1", "3"]}
"""Not the last layer with its 10 outputs, nor the first convolution with its 9 inputs."""

NETS, NAMES, PATTERNS, SPARSITIES = (
    list(NETWORKS),
    sorted(CRITERIA),
    ["unstructured", "1x4"],
    [0.5, 0.6, 0.7, 0.8, 0.9, 0.95],
)


def read(folder: Path, device: torch.device, train: int) -> tuple[Data, Data]:
    """Training and test images; the first ``train`` of the training images."""

    def idx(name: str, skip: int) -> np.ndarray:
        path = folder / f"{name}.gz"
        if not path.is_file():
            raise SystemExit(f"{path} is missing; install it with: apt-get install dataset-fashion-mnist")
        return np.frombuffer(gzip.decompress(path.read_bytes())[skip:], dtype=np.uint8)

    found = []
    for part in ("train", "t10k"):
        images = idx(f"{part}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)
        x = torch.tensor(images, device=device).float().div_(255).sub_(0.286).div_(0.353)
        found.append((x, torch.tensor(idx(f"{part}-labels-idx1-ubyte", 8), dtype=torch.int64, device=device)))
    (x, y), test = found
    return (x[:train], y[:train]), test


def loss(model: nn.Module, batch: Data) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def train(model: nn.Module, data: Data, epochs: int, lr: float, pruner: Pruner | None = None, size: int = 256) -> None:
    """Adam, the learning rate falling to zero along a cosine. Twice over, pruning needs one line more."""
    x, y = data
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    order = torch.Generator(device=x.device).manual_seed(0)
    per_epoch, step = len(x) // size, 0
    model.train()
    for _ in range(epochs):
        mixed = torch.randperm(len(x), generator=order, device=x.device)
        for part in torch.split(mixed[: per_epoch * size], size):
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / (per_epoch * epochs)))
            optimizer.zero_grad()
            loss(model, (x[part], y[part])).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if pruner is not None:
                pruner.step()
            step += 1


def accuracy(model: nn.Module, data: Data) -> float:
    model.eval()
    with torch.no_grad():
        guesses = [model(x).argmax(1) for x in torch.split(data[0], 1000)]
    return float((torch.cat(guesses) == data[1]).float().mean())


def run(trained: nn.Module, data: Data, test: Data, fine: int, include: list[str], **settings: Any) -> dict[str, Any]:
    """Prune a copy at once, fine-tune it, and tell both accuracies."""
    model, started = copy.deepcopy(trained), time.perf_counter()
    pruner = Pruner(model, loss=loss, include=include, **settings)
    at_once = accuracy(model, test)
    train(model, data, fine, 1e-3, pruner)
    reached = pruner.finish().sparsity
    spent = round(time.perf_counter() - started, 2)
    return {"reached": reached, "at_once": at_once, "accuracy": accuracy(model, test), "seconds": spent}


def main(
    network: Annotated[list[str], typer.Option(help="Networks.")] = NETS,
    criterion: Annotated[list[str], typer.Option(help="Criteria.")] = NAMES,
    pattern: Annotated[list[str], typer.Option(help="Patterns.")] = PATTERNS,
    sparsity: Annotated[list[float], typer.Option(help="Sparsities.")] = SPARSITIES,
    epochs: Annotated[int, typer.Option(help="Of the training.")] = 12,
    fine: Annotated[int, typer.Option(help="Epochs of fine-tuning after each pruning.")] = 2,
    images: Annotated[int, typer.Option(help="Training images, at most 60,000.")] = 50_000,
    calibration: Annotated[int, typer.Option(help="Batches of 64 images that criteria look at.")] = 32,
    folder: Annotated[Path, typer.Option(help="Of the idx files.")] = FOLDER,
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    seconds: Annotated[float, typer.Option(help="Start no further run after this long.")] = 1e9,
    out: Annotated[Path | None, typer.Option("--json", help="Results, written after every run.")] = None,
) -> None:
    """Train, prune in many ways, fine-tune, print accuracies."""
    torch.set_num_threads(threads)
    began, place = time.perf_counter(), torch.device(device)
    data, test = read(folder, place, images)
    seen = list(zip(torch.split(data[0], 64), torch.split(data[1], 64), strict=True))[:calibration]
    command = f"python bench/prune_fashion.py {' '.join(sys.argv[1:])}"
    result: dict[str, Any] = {"command": command, "device": device_name(place), "images": len(data[0]), "float": {}}
    result["rows"] = []
    for kind in network:
        torch.manual_seed(0)
        trained = NETWORKS[kind]().to(place)
        train(trained, data, epochs, 2e-3)
        result["float"][kind] = accuracy(trained, test)
        print(f"{kind}: float {result['float'][kind]:.4f}, {time.perf_counter() - began:.0f} s", flush=True)
        for level, shape, name in itertools.product(sparsity, pattern, criterion):
            if time.perf_counter() - began > seconds:
                break
            chosen = {"criterion": name, "pattern": shape, "sparsity": level}
            row = run(trained, data, test, fine, PRUNED[kind], calibration=seen, **chosen)
            result["rows"].append({"network": kind, **chosen, **row})
            print(f"{kind} {name:10} {shape:12} {level:.2f} {row['at_once']:.4f} {row['accuracy']:.4f}", flush=True)
            if out is not None:
                out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

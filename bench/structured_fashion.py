"""Structured removal and kernel shrinking on networks for Fashion-MNIST: accuracy, operations, measured latency.

    python bench/structured_fashion.py train --folder weights
    python bench/structured_fashion.py channels --folder weights --json channels.json
    python bench/structured_fashion.py kernels --folder weights --json kernels.json

Needs Debian's dataset-fashion-mnist. `train` makes the float networks once; the others change copies of them, at once
and after fine-tuning, and time each against the float network in one interleaved run.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from prune_fashion import FOLDER, Data, accuracy, loss, read, train
from torch import Tensor, nn

import tersor
from tersor.host import cpu_model

app = typer.Typer(add_completion=False)
Folder = Annotated[Path, typer.Option(help="Where the float networks are.")]
Out = Annotated[Path | None, typer.Option("--json", help="Results.")]


class Block(nn.Module):
    """The basic block of ResNet-18: two 3x3 convolutions and a shortcut."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        shortcut = [nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out)]
        self.shortcut = nn.Sequential(*shortcut) if stride != 1 or into != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, into, h, w] to [batch, out, h / stride, w / stride]."""
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


def resnet(width: int = 16) -> nn.Sequential:
    """The layout of ResNet-18 (He et al. 2015) at a quarter of its width, its stem for images of 28x28."""
    stem = [nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    widths = [width, width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width]
    blocks = [Block(into, out, 2 if out > into else 1) for into, out in pairwise(widths)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))


def wide_kernels() -> nn.Sequential:
    """Three convolutions of 5x5."""
    layers: list[nn.Module] = []
    for into, out in ((1, 24), (24, 48), (48, 96)):
        layers += [nn.Conv2d(into, out, 5, padding=2, bias=False), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 9, 10))


NETWORKS = {"resnet": resnet, "wide": wide_kernels}


def float_network(folder: Path, name: str) -> nn.Module:
    """A trained network."""
    model = NETWORKS[name]()
    model.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    return model.eval()


@app.command("train")
def make(
    folder: Folder,
    epochs: Annotated[int, typer.Option(help="Of the float networks.")] = 6,
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Train the float networks."""
    torch.set_num_threads(threads)
    data, test = read(FOLDER, torch.device(device), 60_000)
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in NETWORKS.items():
        torch.manual_seed(0)
        began, model = time.perf_counter(), build().to(device)
        train(model, data, epochs, 2e-3)
        print(f"{name}: {accuracy(model, test):.4f} in {time.perf_counter() - began:.0f} s", flush=True)
        torch.save({key: value.cpu() for key, value in model.state_dict().items()}, folder / f"{name}.pt")


@app.command()
def channels(
    folder: Folder,
    ratio: Annotated[list[float], typer.Option(help="Parts of the channels to remove.")] = [0.3, 0.5, 0.7],  # noqa: B006
    criterion: Annotated[list[str], typer.Option(help="Criteria.")] = ["magnitude", "entropy", "gradient"],  # noqa: B006
    scope: Annotated[str, typer.Option(help="layer or global.")] = "layer",
    fine: Annotated[int, typer.Option(help="Epochs of fine-tuning.")] = 1,
    images: Annotated[int, typer.Option(help="Training images of the fine-tuning.")] = 60_000,
    device: Annotated[str, typer.Option(help="Of the fine-tuning: cpu, cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    timed: Annotated[bool, typer.Option(help="Measure latency.")] = True,
    out: Out = None,
    keep: Annotated[Path | None, typer.Option(help="Folder for the results as .tersor files.")] = None,
) -> None:
    """Remove channels of the ResNet."""
    torch.set_num_threads(threads)
    data, test = read(FOLDER, torch.device("cpu"), images)
    model = float_network(folder, "resnet")
    batches = list(zip(torch.split(data[0][:1024], 256), torch.split(data[1][:1024], 256), strict=True))
    rows = [{"criterion": "(float)", "ratio": 0.0, **figures(model, model, test, timed=timed)}]
    print(rows[0], flush=True)
    for part in ratio:
        for name in criterion:
            rows.append(remove_channels(model, batches, name, part, scope, fine, device, (data, test), timed, keep))
            print(rows[-1], flush=True)
            write(out, rows)


def remove_channels(
    model: nn.Module,
    batches: list[Data],
    criterion: str,
    ratio: float,
    scope: str,
    fine: int,
    device: str,
    parts: tuple[Data, Data],
    timed: bool,
    keep: Path | None,
) -> dict[str, Any]:
    """One row of the table."""
    narrow, (data, test) = copy.deepcopy(model), parts
    inputs: list[Any] = batches if criterion in ("gradient", "fisher") else [batch[0] for batch in batches]
    result = tersor.prune_channels(
        narrow,
        batches[0][0][:1],
        ratio=ratio,
        criterion=criterion,
        scope=scope,  # type: ignore[arg-type]
        round_to=4,
        calibration=inputs,
        loss=loss,
    )
    at_once = accuracy(narrow, test)
    began = time.perf_counter()
    tune(narrow, data, fine, device)
    row = {
        "criterion": criterion,
        "ratio": ratio,
        "at_once": at_once,
        "seconds": round(time.perf_counter() - began, 1),
        "parameters": result.parameters_after,
        "operations": result.flops_after,
        **figures(model, narrow, test, timed=timed),
    }
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        tersor.save(narrow, keep / f"{criterion}-{ratio:g}.tersor")
    return row


def tune(model: nn.Module, data: Data, epochs: int, device: str) -> None:
    """Fine-tune, and come back to the CPU."""
    if epochs:
        model.to(device)
        train(model, (data[0].to(device), data[1].to(device)), epochs, 1e-3)
        model.to("cpu").eval()


def figures(model: nn.Module, changed: nn.Module, test: Data, *, timed: bool) -> dict[str, Any]:
    """Accuracy, and milliseconds of one image and of 64, each interleaved with the float network."""
    row: dict[str, Any] = {"accuracy": accuracy(changed, test)}
    for size in (1, 64) if timed else ():
        found = tersor.benchmark(model, changed, test[0][:size], rounds=15)
        row[f"ms_{size}"], row[f"float_ms_{size}"] = round(found.b.median_ms, 4), round(found.a.median_ms, 4)
    return row


def write(out: Path | None, rows: list[dict[str, Any]]) -> None:
    """Keep what is there so far."""
    if out is not None:
        command = f"python bench/structured_fashion.py {' '.join(sys.argv[1:])}"
        result = {"command": command, "cpu": cpu_model(), "torch": torch.__version__, "rows": rows}
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    app()

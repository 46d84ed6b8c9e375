"""Structured removal and kernel shrinking on networks for Fashion-MNIST: accuracy, operations, measured latency.

    python bench/structured_fashion.py train --folder weights
    python bench/structured_fashion.py channels --folder weights --json channels.json
    python bench/structured_fashion.py kernels --folder weights --json kernels.json
    python bench/structured_fashion.py times --folder weights --json times.json
    python bench/structured_fashion.py plot --channels channels.json --times times.json --out structured.png

Needs Debian's dataset-fashion-mnist. `train` makes the float networks once; `channels` and `kernels` change copies of
them, at once and with fine-tuning, and keep them beside; `times` measures each against its float network in one
interleaved run.
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
from torch.utils.flop_counter import FlopCounterMode

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
    for into, out in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(into, out, 5, padding=2, bias=False), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 9, 10))


NETWORKS = {"resnet": resnet, "wide": wide_kernels}


def float_network(folder: Path, name: str) -> nn.Module:
    """A trained network."""
    model = NETWORKS[name]()
    model.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    return model.eval()


@app.command("train")
def make(
    folder: Folder,
    network: Annotated[list[str], typer.Option(help="resnet, wide.")] = list(NETWORKS),  # noqa: B006
    epochs: Annotated[int, typer.Option(help="Of the float networks.")] = 4,
    images: Annotated[int, typer.Option(help="Training images.")] = 60_000,
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Train the float networks."""
    torch.set_num_threads(threads)
    data, test = read(FOLDER, torch.device(device), images)
    folder.mkdir(parents=True, exist_ok=True)
    for name in network:
        torch.manual_seed(0)
        began, model = time.perf_counter(), NETWORKS[name]().to(device)
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
    out: Out = None,
) -> None:
    """Remove channels of the ResNet."""
    torch.set_num_threads(threads)
    data, test = read(FOLDER, torch.device("cpu"), images)
    model = float_network(folder, "resnet")
    batches = list(zip(torch.split(data[0][:256], 64), torch.split(data[1][:256], 64), strict=True))
    rows: list[dict[str, Any]] = [{"criterion": "(float)", "ratio": 0.0, "accuracy": accuracy(model, test)}]
    print(rows[0], flush=True)
    for part in ratio:
        for name in criterion:
            narrow, row = remove_channels(model, batches, name, part, scope, test)
            began = time.perf_counter()
            tune(narrow, data, fine, device)
            row |= {"seconds": round(time.perf_counter() - began, 1), "accuracy": accuracy(narrow, test)}
            tersor.save(narrow, folder / f"resnet-{name}-{part:g}.tersor")
            rows.append(row)
            print(row, flush=True)
            write(out, rows)


def remove_channels(
    model: nn.Module, batches: list[Data], criterion: str, ratio: float, scope: Any, test: Data
) -> tuple[nn.Module, dict[str, Any]]:
    """A narrow copy, and what is known of it before fine-tuning."""
    narrow = copy.deepcopy(model)
    inputs: list[Any] = batches if criterion in ("gradient", "fisher") else [batch[0] for batch in batches]
    result = tersor.prune_channels(
        narrow,
        batches[0][0][:1],
        ratio=ratio,
        criterion=criterion,
        scope=scope,
        round_to=4,
        calibration=inputs,
        loss=loss if criterion in ("gradient", "fisher") else None,
    )
    return narrow, {
        "criterion": criterion,
        "ratio": ratio,
        "parameters": result.parameters_after,
        "float_parameters": result.parameters_before,
        "operations": result.flops_after,
        "float_operations": result.flops_before,
        "at_once": accuracy(narrow, test),
    }


@app.command()
def kernels(
    folder: Folder,
    method: Annotated[list[str], typer.Option(help="Methods.")] = ["cut", "single", "stacked", "separable"],  # noqa: B006
    fine: Annotated[int, typer.Option(help="Epochs of fine-tuning.")] = 1,
    images: Annotated[int, typer.Option(help="Training images of the fine-tuning.")] = 60_000,
    device: Annotated[str, typer.Option(help="Of the fine-tuning: cpu, cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    out: Out = None,
) -> None:
    """Shrink the 5x5 kernels of the other network; `cut` is the rival: the kernel with its rim cut off."""
    torch.set_num_threads(threads)
    data, test = read(FOLDER, torch.device("cpu"), images)
    model = float_network(folder, "wide")
    rows: list[dict[str, Any]] = [{"method": "(float)", "accuracy": accuracy(model, test)}]
    print(rows[0], flush=True)
    for name in method:
        small = copy.deepcopy(model)
        errors = cut(small) if name == "cut" else fitted(small, list(torch.split(data[0][:512], 128)), name)
        row = {"method": name, "errors": errors, "parameters": sum(p.numel() for p in small.parameters())}
        row |= {"operations": operations(small, data[0][:1]), "at_once": accuracy(small, test)}
        began = time.perf_counter()
        tune(small, data, fine, device)
        row |= {"seconds": round(time.perf_counter() - began, 1), "accuracy": accuracy(small, test)}
        tersor.save(small, folder / f"wide-{name}.tersor")
        rows.append(row)
        print(row, flush=True)
        write(out, rows)


def fitted(model: nn.Module, batches: list[Tensor], method: Any) -> list[float]:
    """Relative errors of the layers."""
    return [round(row.error, 4) for row in tersor.restructure.shrink_kernels(model, batches, method=method).rows]


def cut(model: nn.Module) -> list[float]:
    """The rival: the middle 3x3 of each kernel. No errors are measured."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d):
            new = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1, bias=False)
            new.weight = nn.Parameter(layer.weight.detach()[..., 1:4, 1:4].clone())
            tersor.structure.replace_module(model, name, new)
    return []


def operations(model: nn.Module, x: Tensor) -> int:
    """Operations of one image in convolutions and products of matrices."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(x)
    return int(counter.get_total_flops())


@app.command()
def times(
    folder: Folder,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    rounds: Annotated[int, typer.Option(help="Of each measurement.")] = 15,
    out: Out = None,
) -> None:
    """Milliseconds of one image and of 64, each file interleaved with its float network."""
    torch.set_num_threads(threads)
    rows = []
    for path in sorted(folder.glob("*.tersor")):
        name = path.stem.partition("-")[0]
        model, changed = float_network(folder, name), tersor.load(path, NETWORKS[name]())
        row: dict[str, Any] = {"file": path.stem}
        for size in (1, 64):
            found = tersor.benchmark(model, changed, torch.randn(size, 1, 28, 28), rounds=rounds)
            row[f"ms_{size}"], row[f"float_ms_{size}"] = round(found.b.median_ms, 4), round(found.a.median_ms, 4)
        rows.append(row)
        print(row, flush=True)
    write(out, rows)


def tune(model: nn.Module, data: Data, epochs: int, device: str) -> None:
    """Fine-tune, and come back to the CPU."""
    if epochs:
        model.to(device)
        train(model, (data[0].to(device), data[1].to(device)), epochs, 1e-3)
        model.to("cpu").eval()


def write(out: Path | None, rows: list[dict[str, Any]]) -> None:
    """Keep what is there so far."""
    if out is not None:
        command = f"python bench/structured_fashion.py {' '.join(sys.argv[1:])}"
        result = {"command": command, "cpu": cpu_model(), "torch": torch.__version__, "rows": rows}
        out.write_text(json.dumps(result, indent=1) + "\n")


@app.command()
def plot(
    channels: Annotated[Path, typer.Option(help="Results of `channels`.")],
    times: Annotated[Path, typer.Option(help="Results of `times`.")],
    out: Annotated[Path, typer.Option(help="A .png file.")],
) -> None:
    """Accuracy over operations and over latency."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = json.loads(channels.read_text())["rows"]
    speeds = {row["file"]: row for row in json.loads(times.read_text())["rows"]}
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, constrained_layout=True)
    whole = rows[0]["accuracy"]
    for name in dict.fromkeys(row["criterion"] for row in rows[1:]):
        own = [row for row in rows[1:] if row["criterion"] == name]
        work = [1.0, *(row["operations"] / row["float_operations"] for row in own)]
        speed = [speeds[f"resnet-{name}-{row['ratio']:g}"] for row in own]
        clock = [1.0, *(row["ms_64"] / row["float_ms_64"] for row in speed)]
        for axis, x in zip(axes, (work, clock), strict=True):
            (line,) = axis.plot(x, [whole, *(row["accuracy"] for row in own)], "o-", label=f"{name}, fine-tuned")
            at_once = [whole, *(row["at_once"] for row in own)]
            axis.plot(x, at_once, "o:", color=line.get_color(), alpha=0.6, label=f"{name}, at once")
    for axis, title in zip(axes, ("operations left", "time left, 64 images"), strict=True):
        axis.set_xlabel(title)
        axis.set_xlim(0, 1.05)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on Fashion-MNIST")
    axes[1].legend(loc="center right", fontsize=8)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    app()

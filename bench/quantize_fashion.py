"""A small CNN for Fashion-MNIST with 4- and 3-bit weights and 8- and 4-bit inputs: after rounding, and after training.

    python bench/quantize_fashion.py --json out.json --plot out.png

Needs Debian's dataset-fashion-mnist. The network is that of bench/prune_fashion.py. All its layers are quantised:
weights per output channel, inputs by one range per layer (observer "mse" on 512 images). 4-bit inputs are simulated,
since the kernels take 8 bits; so are convolutions.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from prune_fashion import FOLDER, NETWORKS, accuracy, loss, read, train
from torch import nn

from tersor.host import cpu_model
from tersor.quantize.qat import QAT, Scheme
from tersor.training import train as train_loop

WEIGHTS, INPUTS = (8, 4, 3), (8, 4)


def scheme(weights: int, inputs: int) -> Scheme:
    """Per channel, static, with learned steps."""
    return Scheme(weights, activations="static", activation_bits=inputs, observer="mse")


def quantized(trained: nn.Module, kind: Scheme, seen: list[Any], steps: int | None = None) -> tuple[nn.Module, QAT]:
    """A copy that rounds, its ranges taken from some images."""
    model = copy.deepcopy(trained).eval()
    qat = QAT(model, kind, steps=steps, observe=0.0, calibration=seen)
    qat.freeze_observers()
    return model, qat


def plot(result: dict[str, Any], path: Path) -> None:
    """Accuracy over bits of weights, one line for each kind of inputs, rounded and trained."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = sorted({row["weights"] for row in result["rows"]})
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    axes.axhline(100 * result["float"], color="0.4", linewidth=1, linestyle=":")
    axes.annotate(
        f"float {100 * result['float']:.1f} %",
        (len(labels) - 2 + 0.5, 100 * result["float"]),
        (0, 3),
        textcoords="offset points",
        color="0.35",
        fontsize=9,
    )
    for inputs, color in zip(INPUTS, ("#1f6f8b", "#d1495b"), strict=True):
        rows = sorted((row for row in result["rows"] if row["inputs"] == inputs), key=lambda row: row["weights"])
        for key, style, name in (("rounded", "--", "rounded"), ("trained", "-", "trained")):
            axes.plot(
                [labels.index(row["weights"]) for row in rows],
                [100 * row[key] for row in rows],
                style,
                color=color,
                marker="o",
                markersize=4,
                label=f"{inputs}-bit inputs, {name}",
            )
    axes.set_xticks(range(len(labels)), [str(label) for label in labels])
    axes.set_xlabel("bits of a weight")
    axes.set_ylabel("accuracy on 10,000 test images, %")
    axes.set_title("Fashion-MNIST: rounding, and training with rounding", fontsize=11)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    figure.savefig(path, dpi=150)


def main(
    epochs: Annotated[int, typer.Option(help="Of the float training.")] = 3,
    fine: Annotated[int, typer.Option(help="Epochs of training with rounding.")] = 1,
    images: Annotated[int, typer.Option(help="Training images, at most 60,000.")] = 30_000,
    learning_rate: Annotated[float, typer.Option(help="With rounding.")] = 1e-3,
    folder: Annotated[Path, typer.Option(help="Of the idx files.")] = FOLDER,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    out: Annotated[Path | None, typer.Option("--json", help="Results, written after every run.")] = None,
    picture: Annotated[Path | None, typer.Option("--plot", help="A PNG.")] = None,
) -> None:
    """Train, round, train with rounding, print accuracies."""
    torch.set_num_threads(threads)
    began = time.perf_counter()
    data, test = read(folder, torch.device("cpu"), images)
    torch.manual_seed(0)
    trained = NETWORKS["cnn"]()
    train(trained, data, epochs, 2e-3)
    batches = list(zip(torch.split(data[0], 256), torch.split(data[1], 256), strict=True))
    seen = [x for x, _ in batches[:2]]
    result: dict[str, Any] = {
        "command": f"python bench/quantize_fashion.py {' '.join(sys.argv[1:])}",
        "host": cpu_model(),
    }
    result |= {"float": accuracy(trained, test), "rows": []}
    print(f"float {result['float']:.4f}, {time.perf_counter() - began:.0f} s", flush=True)
    for weights, inputs in itertools.product(WEIGHTS, INPUTS):
        rounded = accuracy(quantized(trained, scheme(weights, inputs), seen)[0], test)
        model, qat = quantized(trained, scheme(weights, inputs), seen, len(batches) * fine)
        train_loop(
            model,
            batches,
            loss,
            epochs=fine,
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-4),
            rate="cosine",
            seed=0,
            companions=[qat],
            progress=False,
        )
        row = {"weights": weights, "inputs": inputs, "rounded": rounded, "trained": accuracy(model, test)}
        result["rows"].append(row)
        print(
            f"{weights}-bit weights, {inputs}-bit inputs: {rounded:.4f} rounded, {row['trained']:.4f} trained",
            flush=True,
        )
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")
        if picture is not None:
            plot(result, picture)


if __name__ == "__main__":
    typer.run(main)

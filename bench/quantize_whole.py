"""What equalisation and re-estimated batch norms do for a rounded CNN with batch norms on Fashion-MNIST.

    python bench/quantize_whole.py --json out.json

Weights alone are rounded, to nearest, with one scale per layer or per output channel. Equalisation works on the folded
network, batch norms are re-estimated on 512 training images. Needs Debian's dataset-fashion-mnist.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from prune_fashion import FOLDER, accuracy, read, train
from torch import Tensor, nn

from tersor.host import cpu_model
from tersor.quantize.batch_norm import reestimate_batch_norm
from tersor.quantize.codebooks import decode, make_codebook
from tersor.quantize.equalize import equalize

BITS = (4, 3)


def network() -> nn.Sequential:
    """Three convolutions with batch norms and one linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 10)),
    )


def folded(model: nn.Sequential) -> nn.Sequential:
    """The same function without batch norms."""
    layers: list[nn.Module] = []
    for layer in copy.deepcopy(model):
        if isinstance(layer, nn.BatchNorm2d) and isinstance(conv := layers[-1], nn.Conv2d):
            layers[-1] = nn.utils.fusion.fuse_conv_bn_eval(conv, layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers).eval()


@torch.no_grad()
def rounded(model: nn.Sequential, bits: int, channels: bool) -> nn.Sequential:
    """A copy with rounded weights, one scale per output channel or per layer."""
    made, book = copy.deepcopy(model), make_codebook("linear")
    for layer in made:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight.flatten(1) if channels else layer.weight.reshape(1, -1)
            layer.weight.copy_(decode(book.fit(weight, bits)).view_as(layer.weight))
    return made


def main(
    images: Annotated[int, typer.Option(help="Training images.")] = 6_000,
    epochs: Annotated[int, typer.Option(help="Of the float training.")] = 3,
    folder: Annotated[Path, typer.Option(help="Of the idx files.")] = FOLDER,
    out: Annotated[Path | None, typer.Option("--json", help="Results.")] = None,
) -> None:
    """Train, round, correct, print accuracies and errors of the outputs."""
    torch.set_num_threads(1)
    data, test = read(folder, torch.device("cpu"), images)
    torch.manual_seed(0)
    model = network()
    train(model, data, epochs, 2e-3)
    model.eval()
    plain, even = folded(model), folded(model)
    equalize(even)
    seen: list[Tensor] = list(torch.split(data[0][:512], 128))
    with torch.no_grad():
        expected = model(test[0][:2000])
    result: dict[str, Any] = {"command": f"python bench/quantize_whole.py {' '.join(sys.argv[1:])}"}
    result |= {"host": cpu_model(), "float": accuracy(model, test), "rows": []}
    print(f"float {result['float']:.4f}")

    def note(name: str, made: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            error = float((made(test[0][:2000]) - expected).norm() / expected.norm())
        found = {"accuracy": accuracy(made, test), "error": error}
        print(f"{name:60} {found['accuracy']:.4f} {error:.4f}", flush=True)
        return found

    for bits, channels in itertools.product(BITS, (False, True)):
        where = f"{bits} bits, one scale per {'channel' if channels else 'layer'}"
        row: dict[str, Any] = {"bits": bits, "per": "channel" if channels else "layer"}
        row["folded"] = note(f"{where}, folded", rounded(plain, bits, channels))
        row["equalised"] = note(f"{where}, folded, equalised", rounded(even, bits, channels))
        kept = rounded(model, bits, channels)
        row["not folded"] = note(f"{where}, batch norms as trained", kept)
        reestimate_batch_norm(kept, seen, progress=False)
        row["re-estimated"] = note(f"{where}, batch norms re-estimated", kept)
        result["rows"].append(row)
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

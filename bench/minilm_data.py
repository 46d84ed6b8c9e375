"""MiniLM-L6 and texts without labels for `tersor compress`, run in this folder:

tersor compress minilm_data:model --data minilm_data:data --recipe ../recipes/transformer_encoder.toml --out small.tersor --work work
"""  # noqa: E501

from __future__ import annotations

from typing import Any

import torch
from minilm_task import build
from recover import Crops
from torch import Tensor, nn

from tersor import demo_data

SHAPES = ((1, 16), (1, 128), (8, 128), (32, 128))  # batch, tokens
TRAIN = ((4, 0.08), (16, 0.12), (32, 0.2), (64, 0.3), (128, 0.3))
"""Lengths of texts, [CLS] and [SEP] with them, and how often each is drawn."""


def model() -> nn.Module:
    """The float model; its embeddings are not trained."""
    found, _ = demo_data.load_model(demo_data.model_folder())
    found.embeddings.requires_grad_(False)
    found.encoder.requires_grad_(True)
    return found


def data() -> dict[str, Any]:
    """Inputs of usual sizes, 12,288 tokens to calibrate on and 65,536 to train on."""
    torch.set_num_threads(1)
    _, tokenizer = demo_data.load_model(demo_data.model_folder())
    crops = Crops(build(tokenizer).recovery, torch.device("cpu"))
    example, *others = (demo_data.random_batch(batch, tokens) for batch, tokens in (SHAPES[2], *SHAPES[:2]))
    calibration = batches(crops, 12, 1024, ((32, 0.2), (64, 0.4), (128, 0.4)), seed=1)
    train = batches(crops, 128, 512, TRAIN, seed=2)
    return {"example_inputs": example, "other_inputs": others, "calibration": calibration, "train": train}


def batches(
    crops: Crops, count: int, tokens: int, shares: tuple[tuple[int, float], ...], seed: int
) -> list[dict[str, Tensor]]:
    """Crops of one length each, in half of which 15 % of the words are others."""
    random = torch.Generator().manual_seed(seed)
    lengths, chances = zip(*shares, strict=True)
    found = []
    for _ in range(count):
        length = lengths[int(torch.multinomial(torch.tensor(chances), 1, generator=random))]
        ids = crops.draw(length, max(4, tokens // length), random, replaced=0.15)
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return found

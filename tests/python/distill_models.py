"""Small teachers and students of three kinds, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Pictures(nn.Module):
    """Two stages of convolutions, 1x12x12 pictures to 5 classes."""

    def __init__(self, width: int, stride: int = 2) -> None:
        super().__init__()
        self.stages = nn.Sequential(stage(1, width, 1), stage(width, 2 * width, stride))
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x).mean((2, 3)))


def stage(inside: int, outside: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.BatchNorm2d(outside), nn.ReLU())


class Block(nn.Module):
    """Attention that returns its map, as transformers' blocks do, and a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        found, _ = self.attention(x, x, x, key_padding_mask=padding, average_attn_weights=False)
        return x + torch.tanh(self.out(found))


class Texts(nn.Module):
    """Token numbers [batch, tokens] to class scores [batch, 5] through blocks."""

    def __init__(self, blocks: int, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(width, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.dropout(self.embed(input_ids))
        for block in self.blocks:
            x = block(x, attention_mask == 0)
        return {"logits": self.head(x[:, 0]), "hidden": x}


def pictures(batches: int = 4, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 1, 12, 12, generator=generator), torch.randint(5, (size,), generator=generator))
        for _ in range(batches)
    ]


def texts(batches: int = 3, size: int = 6) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    made = []
    for _ in range(batches):
        mask = torch.arange(7) < torch.randint(2, 8, (size, 1), generator=generator)
        made.append({"input_ids": torch.randint(40, (size, 7), generator=generator), "attention_mask": mask.long()})
    return made


def make(cls: Any, *args: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return cls(*args).eval()

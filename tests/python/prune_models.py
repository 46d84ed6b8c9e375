"""Small models and data for the pruning tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]

OPTIMISERS: dict[str, Any] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1),
    "sgd momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
}


def net() -> nn.Sequential:
    """A grouped convolution, a linear layer of awkward width, another one: 8x8 pictures to 10 classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (2, 4, 8)),
        nn.Conv2d(2, 8, 3, padding="same", groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 37),
        nn.Dropout(0.1),
        nn.ReLU(),
        nn.Linear(37, 10),
    )


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def noise(batches: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 64, generator=generator), torch.randint(10, (16,), generator=generator))
        for _ in range(batches)
    ]


def digits() -> tuple[list[Batch], Batch]:
    """scikit-learn's handwritten digits as training batches and a test set."""
    data: Any = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 16
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return list(zip(x[:1440].split(48), y[:1440].split(48), strict=True)), (x[1440:], y[1440:])


def accuracy(model: nn.Module, batch: Batch) -> float:
    model.eval()
    with torch.no_grad():
        return float((model(batch[0]).argmax(1) == batch[1]).float().mean())


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def hooks(model: nn.Module) -> int:
    return sum(
        len(table)
        for module in model.modules()
        for key, table in module.__dict__.items()
        if key.endswith("hooks") and table is not None
    )


def check_clean(model: nn.Module, keys: list[str]) -> None:
    assert list(model.state_dict()) == keys
    assert hooks(model) == 0
    assert not any("mask" in key or "orig" in key for module in model.modules() for key in module.__dict__)

"""Small models for the tests of the file format, and what it means that two models are the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.nn import Int8Linear


class Net(nn.Module):
    """Two linear layers, a tied embedding and head, batch norm, a bool buffer, a non-persistent buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.first = nn.Linear(6, 7)
        self.norm = nn.BatchNorm1d(7)
        self.second = nn.Linear(7, 6, bias=False)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("keep", torch.tensor([True, False, True, True, True, True, True]))
        self.register_buffer("steps", torch.linspace(0, 1, 6), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch] to [batch, 11]."""
        x = self.embed(tokens)  # [batch, 6]
        x = self.norm(self.first(x) * self.keep)
        return self.head(self.second(x) + self.steps)


TOKENS = torch.tensor([0, 3, 10, 7, 7])


def replace(model: nn.Module, *names: str, smoothed: bool = False) -> nn.Module:
    """Puts Int8Linear in the place of the linear layers of these names."""
    for name in names:
        parent, _, key = name.rpartition(".")
        old = model.get_submodule(name)
        input_scale = torch.linspace(0.25, 1, old.in_features) if smoothed else None
        setattr(model.get_submodule(parent), key, Int8Linear.from_float(old, input_scale=input_scale))
    return model


def int8_net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A Net with trained-looking statistics, in evaluation mode: `first` is int8, `second` int8 and smoothed."""
    torch.manual_seed(seed)
    model = Net()
    for _ in range(3):
        model(torch.randint(0, 11, (16,)))
    return replace(replace(model.to(dtype), "first"), "second", smoothed=True).eval()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Equal keys, dtypes and values of both state dicts, bit for bit."""
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(bits(tensor), bits(right[name])), name


def bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, so that NaN equals NaN."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)

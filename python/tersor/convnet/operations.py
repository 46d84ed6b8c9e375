"""The operations of networks that int8 graphs have."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Pads = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass(frozen=True)
class Conv:
    """weight [out, in / groups, kernel_h, kernel_w]."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    pads: Pads
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class Linear:
    """weight [out, in]."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Norm:
    """x * scale + shift per channel, float64 [channels]."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Activation:
    """One of `tersor.nn.int8_graph_config.ACTIVATIONS`."""

    name: str


@dataclass(frozen=True)
class Pad:
    """Zeros around a picture."""

    pads: Pads


@dataclass(frozen=True)
class Pool:
    """`pooling` is one of `tersor.nn.int8_graph_config.POOLINGS`; `whole`: over the picture, whatever its size."""

    pooling: str
    whole: bool
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pads: Pads = (0, 0, 0, 0)


class Same:
    """Gives out what it gets."""


class Flatten:
    """[n, channels, height, width] to [n, channels * height * width]."""


class Add:
    """The sum of two tensors of the same shape."""


Op = Conv | Linear | Norm | Activation | Pad | Pool | Same | Flatten | Add

"""What can stand for a convolution with a large kernel, and how each is fitted."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.restructure.least_squares import Moments, fill

Fit = Callable[[Tensor, Tensor], None]


class Method(abc.ABC):
    """One replacement. :meth:`stages` gives functions that are each shown all batches ``(x, wanted y)`` in turn."""

    label: ClassVar[str] = ""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer = layer
        self.like = {"dtype": layer.weight.dtype, "device": layer.weight.device}
        self.inset = (layer.kernel_size[0] - 3) // 2  # the places at each side that a 3x3 kernel does not see

    @classmethod
    def refusal(cls, layer: nn.Conv2d) -> str | None:
        """Why a layer can't be replaced so, or None."""
        return None

    @abc.abstractmethod
    def stages(self) -> Iterator[Fit]:
        """The passes over the data."""

    @abc.abstractmethod
    def finish(self) -> nn.Module:
        """The replacement, when all passes are done."""

    def conv(
        self, into: int, out: int, kernel: int, padding: Any, *, stride: Any = 1, groups: int = 1, bias: bool = True
    ) -> nn.Conv2d:
        """A convolution in the dtype of the old one."""
        settings: dict[str, Any] = {"groups": groups, "bias": bias, **self.like}
        return nn.Conv2d(into, out, kernel, stride, padding, **settings)

    def inner_padding(self) -> tuple[int, int]:
        """The padding of a 3x3 kernel whose middle lies where that of the old one does."""
        height, width = (int(size) for size in self.layer.padding)
        return height - self.inset, width - self.inset


def _padding_refusal(layer: nn.Conv2d) -> str | None:
    inset = (layer.kernel_size[0] - 3) // 2
    if min(int(size) for size in layer.padding) < inset:
        return f"it is padded by less than {inset}, so a 3x3 kernel would make larger outputs"
    return None


class Single(Method):
    """One 3x3 convolution: the least-squares solution itself."""

    label = "3x3"

    @classmethod
    def refusal(cls, layer: nn.Conv2d) -> str | None:
        return _padding_refusal(layer)

    def stages(self) -> Iterator[Fit]:
        old = self.layer
        self.new = self.conv(
            old.in_channels, old.out_channels, 3, self.inner_padding(), stride=old.stride, groups=old.groups
        )
        moments = Moments(self.new)
        yield moments.add
        fill(self.new, *moments.solve())

    def finish(self) -> nn.Module:
        return self.new


class Separable(Method):
    """A depthwise 3x3 convolution and a 1x1.

    The depthwise kernel of a channel is the direction in which the least-squares 3x3 kernels of this channel do most,
    under the covariance of its patches; then the 1x1 is the least-squares solution for what that gives.
    """

    label = "depthwise 3x3, 1x1"

    @classmethod
    def refusal(cls, layer: nn.Conv2d) -> str | None:
        return "it is grouped already" if layer.groups > 1 else _padding_refusal(layer)

    def stages(self) -> Iterator[Fit]:
        old, padding = self.layer, self.inner_padding()
        full = Moments(self.conv(old.in_channels, old.out_channels, 3, padding, stride=old.stride))
        yield full.add
        weight, _ = full.solve()  # [out, in, 3, 3]
        covariance = full.covariance()[0]
        count = old.in_channels
        self.depthwise = self.conv(count, count, 3, padding, stride=old.stride, groups=count, bias=False)
        kernels = torch.stack([_direction(weight[:, i].flatten(1), covariance, i) for i in range(count)])
        fill(self.depthwise, kernels, None)
        self.pointwise = self.conv(count, old.out_channels, 1, 0)
        last = Moments(self.pointwise)
        yield lambda x, y: last.add(_forward(self.depthwise, x), y)
        fill(self.pointwise, *last.solve())

    def finish(self) -> nn.Module:
        return nn.Sequential(self.depthwise, self.pointwise)


class Stacked(Method):
    """Several 3x3 convolutions in a row that see as far as the old one.

    The old kernel is a sum of 3x3 shifts of smaller kernels; the singular vectors of that sum, under the covariance of
    the inputs, give the first convolutions, the last is the least-squares solution for what those give. All padding is
    in the first, so borders are as in the old one; with enough channels between it would be exact.
    """

    label = "stacked 3x3"

    @classmethod
    def refusal(cls, layer: nn.Conv2d) -> str | None:
        if layer.kernel_size[0] > 7:
            return "its kernel is larger than 7x7"
        return "it is grouped" if layer.groups > 1 else None

    def stages(self) -> Iterator[Fit]:
        old = self.layer
        between = min(old.out_channels, 9 * old.in_channels)
        kernel, padding, into = old.weight.detach().double(), old.padding, old.in_channels
        patches = Moments(self.conv(into, 1, old.kernel_size[0] - 2, padding))
        yield lambda x, y: patches.add(x, _places(patches, x))
        inner = _inner(kernel, patches.covariance()[0], between)
        self.first: list[nn.Conv2d] = []
        while True:
            small = inner.shape[-1] == 3
            pieces = inner if small else _inner(inner, torch.eye(into * (inner.shape[-1] - 2) ** 2).double(), between)
            made = self.conv(into, len(pieces), 3, padding, bias=False)
            fill(made, pieces, None)
            self.first.append(made)
            if small:
                break
            inner, into, padding = _outer(inner, pieces), len(pieces), (0, 0)
        self.last = self.conv(len(inner), old.out_channels, 3, 0, stride=old.stride)
        moments = Moments(self.last)
        yield lambda x, y: moments.add(_forward(nn.Sequential(*self.first), x), y)
        fill(self.last, *moments.solve())

    def finish(self) -> nn.Module:
        return nn.Sequential(*self.first, self.last)


@torch.no_grad()
def _forward(module: nn.Module, x: Tensor) -> Tensor:
    made: Tensor = module(x)
    return made


def _places(moments: Moments, x: Tensor) -> Tensor:
    """Something to fit for every place, where only the inputs count."""
    layer: Any = moments.view.module
    with torch.no_grad():
        return torch.zeros_like(layer(x))


def _direction(rows: Tensor, covariance: Tensor, channel: int) -> Tensor:
    """The kernel [9] that does most of ``rows`` [out, 9] for the patches of a channel."""
    block = covariance[9 * channel : 9 * channel + 9, 9 * channel : 9 * channel + 9]
    root = _root(block)
    _, _, vectors = torch.linalg.svd(rows @ root, full_matrices=False)
    return _solve(root, vectors[0][:, None])[:, 0]


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    least = values.max().clamp_min(1e-30) * 1e-9
    root: Tensor = vectors * values.clamp_min(least).sqrt() @ vectors.T
    return root


def _solve(matrix: Tensor, wanted: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.lstsq(matrix, wanted, driver="gelsd").solution
    return solution


def _shifts(size: int) -> Tensor:
    """How often each place of a kernel is met by the 9 shifts of one that is smaller by 2, [size, size]."""
    ones = torch.ones(1, 1, size - 2, size - 2, dtype=torch.float64)
    return functional.conv_transpose2d(ones, torch.ones(1, 1, 3, 3, dtype=torch.float64))[0, 0]


def _parts(kernel: Tensor) -> Tensor:
    """[out, in, k, k] as 9 kernels [9, out, in, k - 2, k - 2] whose shifts add up to it, each place shared evenly."""
    size = kernel.shape[-1]
    even = kernel / _shifts(size)
    return torch.stack([even[..., i : i + size - 2, j : j + size - 2] for i in range(3) for j in range(3)])


def _inner(kernel: Tensor, covariance: Tensor, count: int) -> Tensor:
    """The ``count`` smaller kernels [count, in, k - 2, k - 2] of which shifts can best make up ``kernel``."""
    parts = _parts(kernel)
    root = _root(covariance)
    _, _, vectors = torch.linalg.svd(parts.flatten(2).flatten(0, 1) @ root, full_matrices=False)
    count = min(count, len(vectors))
    return _solve(root, vectors[:count].T).T.reshape(count, *parts.shape[2:])


def _outer(kernel: Tensor, pieces: Tensor) -> Tensor:
    """The 3x3 kernels [out, count, 3, 3] that make up ``kernel`` best from ``pieces``."""
    parts = _parts(kernel).flatten(2)  # [9, out, in * (k - 2)^2]
    solution = _solve(pieces.flatten(1).T, parts.flatten(0, 1).T)  # [count, 9 out]
    return solution.reshape(len(pieces), 3, 3, -1).permute(3, 0, 1, 2)


METHODS: dict[str, type[Method]] = {"single": Single, "stacked": Stacked, "separable": Separable}

"""Fake quantisation: float values that are what the integers will stand for, with gradients straight through.

Steps are learned (LSQ) through their logarithm, which keeps them positive. With ``v = x / s``, ``x' = s round(v)``
inside the range and ``s`` times its end outside, so that ``dx' / ds`` is ``round(v) - v`` inside and the end outside.

Sources: Bengio et al., 2013 (arXiv 1308.3432) for the straight-through gradient; Esser et al., Learned step size
quantization, ICLR 2020 (arXiv 1902.08153).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tersor.quantize.codebooks import CodeBook, Codes
from tersor.quantize.codebooks.codes import expand_scale, nearest, values
from tersor.quantize.codebooks.scales import grouped
from tersor.quantize.observers import Observer, make_observer

_TINY = torch.finfo(torch.float32).tiny


def straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    """The rounded value, exactly, with the gradient of the other."""
    return rounded.detach() + (value - value.detach())


class FakeWeight(nn.Module):
    """Rounds a weight ``[out, in]`` to a fixed table under learned scales.

    Args:
        weight: what table and scales are fitted to at first.
        book, bits, group_size: see CodeBook.fit.
        learned: the scales are trained; otherwise they stay.
    """

    table: Tensor

    def __init__(self, weight: Tensor, book: CodeBook, bits: int, group_size: int | None, learned: bool = True) -> None:
        super().__init__()
        codes = book.fit(weight, bits, group_size)
        self.bits, self.group_size = bits, codes.group_size
        self.register_buffer("table", codes.table)
        self.log_scale = nn.Parameter(codes.scale.log(), requires_grad=learned)

    @property
    def scale(self) -> Tensor:
        """Float32 ``[out, groups]``."""
        return torch.exp(self.log_scale)

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight; gradients go to the weight where it is inside the table's range, and to the scales."""
        scale = expand_scale(_slowed(self.scale, self.group_size * self._largest()), weight.shape[1], self.group_size)
        units = weight / scale
        low, high = self._ends(weight.shape[1])
        inside = torch.minimum(torch.maximum(units, low), high)
        codes = self._nearest(units.detach())
        entries = values(codes, self.table, self.group_size).to(weight.dtype)
        return straight_through(inside, entries) * scale

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Codes:
        """The integers that :meth:`forward` stands for."""
        weight = weight.detach()
        scale = self.scale.detach().clamp(_TINY, torch.finfo(torch.float32).max / 256)
        units = weight / expand_scale(scale, weight.shape[1], self.group_size)
        return Codes(self._nearest(units), self.table, scale, self.bits, self.group_size)

    def _nearest(self, units: Tensor) -> Tensor:
        if self.table.dim() < 3:
            return nearest(units, self.table)
        return nearest(grouped(units, self.group_size), self.table).flatten(1)[:, : units.shape[1]].contiguous()

    def _ends(self, columns: int) -> tuple[Tensor, Tensor]:
        low, high = self.table[..., 0].float(), self.table[..., -1].float()  # [], [out] or [out, groups]
        if self.table.dim() == 2:
            return low[:, None], high[:, None]
        if self.table.dim() == 3:
            return expand_scale(low, columns, self.group_size), expand_scale(high, columns, self.group_size)
        return low, high

    def _largest(self) -> int:
        return int(self.table.to(torch.int16).abs().max())


class FakeInput(nn.Module):
    """Quantises inputs to unsigned integers of ``bits`` bits with a zero point, as the kernels do.

    Args:
        mode: ``"dynamic"``: each row, or picture, by its own range; ``"static"``: all by one range, which the observer
            chooses from what is seen in training, while ``observing`` is true, and which then stays, with a learned
            step. It moves between optimiser steps (:meth:`follow`), so that it doesn't matter which process of a group
            sees which batch; inputs stay float until there is one.
        observer: a name in ``tersor.quantize.observers.OBSERVERS``.
        learned: the static step is trained once the range is frozen.
        pictures: inputs are ``[n, channels, ...]`` of convolutions, else ``[..., channels]``.
    """

    zero_point: Tensor
    ranged: Tensor  # whether there is a static range

    def __init__(
        self,
        mode: str,
        bits: int = 8,
        observer: str = "moving_average",
        learned: bool = True,
        pictures: bool = False,
    ) -> None:
        super().__init__()
        self.mode, self.bits, self.pictures = mode, bits, pictures
        self.observer, self.fresh = make_observer(observer), self._fresh(observer)
        self.observing = mode == "static"
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=learned and mode == "static")
        self.register_buffer("zero_point", torch.zeros(()))
        self.register_buffer("ranged", torch.zeros((), dtype=torch.bool))

    @property
    def scale(self) -> Tensor:
        """The static step, float32 ``[]``."""
        return torch.exp(self.log_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Values ``[..., channels]`` that the integers stand for."""
        if self.mode == "dynamic":
            return self._dynamic(x)
        if self.observing:
            if self.training or torch.is_grad_enabled():
                self.fresh.add(x)
            if not bool(self.ranged):
                return x
        scale = (
            _slowed(self.scale, max(x.numel(), 1) * (2**self.bits - 1)) if not self.observing else self.scale.detach()
        )
        return self._quantize(x, scale, self.zero_point)

    def follow(self, parts: Sequence[Observer]) -> None:
        """Take the range of all that was observed, these parts being what is new, from all processes."""
        self.observer.merge(parts)
        self.fresh = self._fresh(self.observer.name)
        self._take_range()

    def freeze(self) -> None:
        """Keep the range from here on."""
        if self.observing:
            self.follow([self.fresh])
        self.observing = False

    @staticmethod
    def _fresh(name: str) -> Observer:
        made = make_observer(name)
        made.keeps = True
        return made

    @torch.no_grad()
    def _take_range(self) -> None:
        if self.observer.units:
            scale, zero = self.observer.quantization(self.bits)
            self.log_scale.copy_(scale[0].log())
            self.zero_point.copy_(zero[0])
            self.ranged.fill_(True)

    def _dynamic(self, x: Tensor) -> Tensor:
        most = 2**self.bits - 1
        unit = tuple(range(1, x.dim())) if self.pictures else (-1,)
        with torch.no_grad():
            low, high = x.amin(unit, keepdim=True).clamp_max(0), x.amax(unit, keepdim=True).clamp_min(0)
            scale = (high / most - low / most).clamp_min(_TINY)
            zero = (-low * (1 / scale)).round().clamp(0, most)
        return self._quantize(x, scale, zero)

    def _quantize(self, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        units = x * (1 / scale)  # the kernels multiply by the reciprocal, too
        inside = torch.minimum(torch.maximum(units, -zero), 2**self.bits - 1 - zero)
        rounded: Tensor = straight_through(inside, inside.detach().round()) * scale
        return rounded


def _slowed(scale: Tensor, count: int) -> Tensor:
    """The scale, with a gradient that is ``1 / sqrt(count)`` of its own, as LSQ has it."""
    return scale.detach() + (scale - scale.detach()) / math.sqrt(count)

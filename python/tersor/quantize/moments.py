"""What the inputs of linear layers are like: second moments, mean, and some rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tersor import observe, processes
from tersor.errors import SwapError
from tersor.quantize.channel_range import ChannelRange
from tersor.quantize.row_sample import RowSample

MEMORY = 2**30
"""Bytes of second moments that are collected in one pass over the data."""

SAMPLE_ROWS = 512


class InputMoments:
    """Moments of rows of inputs. Memory: 4 bytes per pair of channels and 512 rows.

    Attributes:
        gram: the mean of ``x x^T``, float32 ``[channels, channels]``.
        mean: of x, float32 ``[channels]``.
        count: of rows.
        sample: up to 512 of the rows.
        channels: the range of every channel.
    """

    def __init__(self, channels: int) -> None:
        self.gram = torch.zeros(channels, channels)
        self.mean = torch.zeros(channels)
        self.count = 0
        self.sample = RowSample(channels, torch.float32, SAMPLE_ROWS)
        self.channels = ChannelRange(channels)

    def add(self, x: Tensor) -> None:
        """Takes an input ``[..., channels]`` in."""
        rows = x.detach().reshape(-1, x.shape[-1]).to(torch.float32)
        if len(rows) == 0:
            return
        self.count += len(rows)
        part = len(rows) / self.count
        self.gram.addmm_(rows.t(), rows, beta=1 - part, alpha=part / len(rows))
        self.mean.lerp_(rows.mean(0), part)
        self.sample.add(rows)
        self.channels.add(rows)

    def join(self) -> None:
        """Become the moments of what all processes were given; the sums differ by the order of additions only."""
        own = self.count
        self.count = sum(processes.gather(own))
        part = own / max(self.count, 1)
        self.gram, self.mean = processes.total(self.gram * part), processes.total(self.mean * part)
        self.sample.merge(processes.gather(self.sample.state()))
        for other in processes.gather(self.channels):
            self.channels.add(torch.stack([other.low, other.high]))

    @property
    def is_finite(self) -> bool:
        """False once an input held NaN or infinity."""
        return bool(torch.isfinite(self.gram.diagonal()).all())


def portions(layers: Mapping[str, int], memory: int = MEMORY) -> Iterator[list[str]]:
    """Names of layers, in order, in portions whose moments fit into ``memory``; values are numbers of channels."""
    portion: list[str] = []
    used = 0
    for name, channels in layers.items():
        size = 4 * channels * (channels + SAMPLE_ROWS + 3)
        if portion and used + size > memory:
            yield portion
            portion, used = [], 0
        portion.append(name)
        used += size
    if portion:
        yield portion


def input_moments(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Any]) -> dict[str, InputMoments]:
    """Run a model over batches and collect the moments of the inputs of linear layers; unreached ones are absent.

    In a process group the batches are shared out, and every process gets the moments of all of them.

    Raises:
        SwapError: the model failed on a batch, there was none, or a layer was given NaN or infinity.
    """
    names = {id(layer): name for name, layer in layers.items()}
    found: dict[str, InputMoments] = {}

    def note(layer: nn.Module, x: Tensor, _: Tensor) -> None:
        if x.numel():
            name = names[id(layer)]
            found.setdefault(name, InputMoments(x.shape[-1])).add(x)
            if not found[name].is_finite:
                raise SwapError(f"{name} was given NaN or infinity in calibration batch {processes.batch_number()}")

    with observe.watching(layers.values(), note):
        count = processes.share(batches, lambda index, batch: observe.run(model, batch, f"calibration batch {index}"))
    if count == 0:
        raise SwapError("the calibration data held no batch; a generator can be used only once")
    if processes.size() == 1:
        return found
    widths = {name: moments.mean.numel() for name, moments in found.items()}
    for own in processes.gather(widths):
        widths |= own
    reached = {name: widths[name] for name in layers if name in widths}
    whole = {name: found.get(name) or InputMoments(width) for name, width in reached.items()}
    for moments in whole.values():
        moments.join()
    return whole

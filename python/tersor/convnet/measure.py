"""What calibration data say about the tensors of a part: ranges, sizes of channels, moments of windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, fx

from tersor.convnet.correct import WindowMoments
from tersor.convnet.operations import Conv
from tersor.convnet.segments import Quantization, Segment
from tersor.errors import SwapError
from tersor.quantize.observers import Observer, make_observer

See = Callable[[fx.Node, Tensor], None]
Pass = Callable[[See], None]
"""Runs the model on all calibration data and shows every tensor."""


def channel_peaks(segments: Sequence[Segment], run: Pass) -> dict[fx.Node, Tensor]:
    """The largest absolute value of each channel of every tensor that a graph has, float32 [channels]."""
    wanted = {node for segment in segments for unit in segment.units for node in (unit.value, *unit.inputs)}
    peaks: dict[fx.Node, Tensor] = {}

    def see(node: fx.Node, value: Tensor) -> None:
        if node in wanted and value.numel():
            peak = value.detach().float().abs().transpose(0, 1).flatten(1).amax(1)
            peaks[node] = torch.maximum(peaks[node], peak) if node in peaks else peak

    run(see)
    return peaks


class Measured:
    """Ranges of all tensors that will be bytes, and moments where corrections need them.

    Args:
        scales: what tensors are multiplied by, per channel, before they become bytes.
        observer: a name in ``tersor.quantize.observers.OBSERVERS``.
        moments, second: whether to collect means, and second moments, of what convolutions meet.
    """

    def __init__(
        self, segments: Iterable[Segment], scales: dict[fx.Node, Tensor], observer: str, moments: bool, second: bool
    ) -> None:
        self._scales = scales
        self._observers: dict[fx.Node, Observer] = {}
        self._readers: dict[fx.Node, list[tuple[Conv, WindowMoments]]] = {}
        self.moments: dict[fx.Node, WindowMoments] = {}
        for segment in segments:
            self._observers.update({node: make_observer(observer) for node in segment.observed()})
            for unit in segment.units:
                if moments and unit.conv is not None:
                    self.moments[unit.value] = WindowMoments(unit.conv, second)
                    seen = (unit.conv, self.moments[unit.value])
                    self._readers.setdefault(unit.inputs[0], []).append(seen)

    def see(self, path: str, node: fx.Node, value: Tensor) -> None:
        """A tensor of the float network; `path` names the part in errors."""
        if node not in self._observers and node not in self._readers:
            return
        scale = self._scales.get(node)
        if scale is not None:
            value = value * scale.reshape(1, -1, *[1] * (value.dim() - 2))
        if node in self._observers:
            try:
                self._observers[node].add(value)
            except ValueError as error:
                raise SwapError(f"{path or 'the model'}: {node.name}: {error}") from error
        for conv, moments in self._readers.get(node, ()):
            if value.numel():
                moments.add(conv, _picture(value, conv))

    def ranges(self) -> dict[fx.Node, Quantization]:
        """Scale and zero point of every observed node."""
        tiny = float(torch.finfo(torch.float32).tiny)
        found = {node: seen.quantization() for node, seen in self._observers.items()}
        return {node: (max(float(scale), tiny), int(zero)) for node, (scale, zero) in found.items()}


def _picture(value: Tensor, conv: Conv) -> Tensor:
    """[n, channels, height, width], also of what was flattened."""
    if value.dim() == 4:
        return value
    return value.reshape(len(value), conv.weight.shape[1] * conv.groups, *conv.weight.shape[2:])

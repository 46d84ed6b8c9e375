"""Channels between convolutions made equally large, so that one scale for a whole tensor loses little.

A tensor of bytes has one scale for all of its channels. What a convolution gives in channel c may be multiplied by
s[c] > 0 if all that read it divide their weights by it, and what lies between passes a factor through: nothing, relu,
a pooling, a sum whose summands are scaled alike. Not relu6, which clips.

Sources: Xiao et al., SmoothQuant, 2022 (arXiv 2211.10438), for the balance between a tensor and the weights that read
it; Nagel et al., ICCV 2019 (arXiv 1906.04721), for scaling through activations. A depthwise filter has a scale for
each channel, so that what it reads costs its weights nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from tersor.convnet.operations import Conv
from tersor.convnet.segments import Segment
from tersor.convnet.units import Unit
from tersor.quantize.smoothing import input_scale


@dataclass
class _Group:
    """Values that are scaled alike."""

    values: list[fx.Node] = field(default_factory=list)
    fixed: bool = False
    readers: list[Conv] = field(default_factory=list)


def scale_channels(segment: Segment, peaks: Mapping[fx.Node, Tensor], alpha: float) -> dict[fx.Node, Tensor]:
    """Scales the filters of a segment in place of its units' `conv`; what became of its tensors: node -> s [channels].

    Args:
        peaks: largest absolute value of each channel of every observed node, [channels].
        alpha: in (0, 1]; how much of what is hard to quantise moves into weights that have one scale for several
            channels.
    """
    scales: dict[fx.Node, Tensor] = {}
    for group in _groups(segment, peaks):
        if group.fixed or not group.readers:
            continue
        peak = torch.stack([peaks[node] for node in group.values if node in peaks]).amax(0)
        s = _factors(group, peak, alpha)
        scales.update(dict.fromkeys(group.values, s))
    for unit in segment.units:
        if unit.conv is not None:
            unit.conv = _scaled(unit.conv, scales.get(unit.inputs[0]), scales.get(unit.value))
    return scales


def per_weight(channels: Tensor, conv: Conv) -> Tensor:
    """A number per input channel for every weight that meets it, [out, in / groups]."""
    out, deep = conv.weight.shape[:2]
    return channels.reshape(conv.groups, deep).repeat_interleave(out // conv.groups, 0)


def _scaled(conv: Conv, before: Tensor | None, after: Tensor | None) -> Conv:
    weight, bias = conv.weight.float(), conv.bias
    if before is not None:
        weight = weight / per_weight(before, conv)[:, :, None, None]
    if after is not None:
        weight = weight * after[:, None, None, None]
        bias = None if bias is None else bias.detach().float() * after
    return dataclasses.replace(conv, weight=weight, bias=bias)


def _factors(group: _Group, peak: Tensor, alpha: float) -> Tensor:
    dense = [conv for conv in group.readers if conv.weight.shape[1] > 1]
    weight = torch.ones_like(peak)
    if dense:
        weight = torch.stack([_column_peaks(conv) for conv in dense]).amax(0)
    s = input_scale(weight, peak, alpha if dense else 1.0)
    return s / s.min()


def _column_peaks(conv: Conv) -> Tensor:
    """The largest weight that meets each input channel, against the largest of its filter, [in]."""
    peak = conv.weight.float().abs().flatten(2).amax(2)  # [out, in / groups]
    share = peak / peak.amax(1, keepdim=True).clamp_min(1e-30)
    return share.reshape(conv.groups, -1, peak.shape[1]).amax(1).flatten()


def _groups(segment: Segment, peaks: Mapping[fx.Node, Tensor]) -> list[_Group]:
    of: dict[fx.Node, _Group] = {}

    def join(nodes: Sequence[fx.Node]) -> _Group:
        merged = _Group()
        for group in {id(of[node]): of[node] for node in nodes if node in of}.values():
            merged.values += group.values
            merged.readers += group.readers
            merged.fixed |= group.fixed
        merged.values += [node for node in nodes if node not in of]
        of.update(dict.fromkeys(merged.values, merged))
        return merged

    join([segment.source]).fixed = True
    for unit in segment.units:
        alike = [unit.value, *unit.inputs[1:]] if unit.kind == "conv" else [unit.value, *unit.inputs]
        group = join(alike)
        group.fixed |= unit.activation not in ("none", "relu") or _reshapes(unit, peaks)
        if unit.conv is not None:
            of[unit.inputs[0]].readers.append(unit.conv)
    of[segment.result].fixed = True
    return list({id(group): group for group in of.values()}.values())


def _reshapes(unit: Unit, peaks: Mapping[fx.Node, Tensor]) -> bool:
    """Whether channels before and after a flattening are different ones."""
    if unit.kind == "conv":
        return False
    sizes = {len(peaks[node]) for node in (unit.value, *unit.inputs) if node in peaks}
    return len(sizes) > 1 or unit.value not in peaks

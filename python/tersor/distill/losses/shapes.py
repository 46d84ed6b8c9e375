"""Features of any layer brought to one of three forms. Layouts: [batch, channels], [batch, tokens, channels],
[batch, channels, height, width]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def channel_axis(dims: int) -> int:
    """Where the channels of a feature with so many dimensions are."""
    return 1 if dims == 4 else -1


def project(projection: nn.Module, x: Tensor) -> Tensor:
    """Map the channels of a feature."""
    axis = channel_axis(x.dim())
    out: Tensor = projection(x.movedim(axis, -1)).movedim(-1, axis)
    return out


def pooled(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two feature maps, the larger one averaged down to the smaller one's height and width."""
    if one.dim() != 4 or one.shape[2:] == other.shape[2:]:
        return one, other
    height, width = (min(sizes) for sizes in zip(one.shape[2:], other.shape[2:], strict=True))
    return functional.adaptive_avg_pool2d(one, (height, width)), functional.adaptive_avg_pool2d(other, (height, width))


def rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """[positions, channels] in float32; tokens that the mask [batch, tokens] excludes are left out."""
    x = x.movedim(channel_axis(x.dim()), -1).to(torch.float32)
    if mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape:
        return x[mask]
    return x.flatten(0, -2)


def examples(x: Tensor, mask: Tensor | None) -> Tensor:
    """[batch, features] in float32, a vector for each example: the mean of its tokens; of anything else all values."""
    x = x.to(torch.float32)
    if x.dim() != 3:
        return x.flatten(1)
    if mask is None or x.shape[:2] != mask.shape:
        return x.mean(dim=1)
    weights = mask[..., None].to(x.dtype)
    return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)


def positions(x: Tensor) -> Tensor:
    """[batch, positions, channels] in float32; a plain vector is one position."""
    x = x.to(torch.float32)
    if x.dim() == 4:
        return x.flatten(2).transpose(1, 2)
    return x[:, None] if x.dim() == 2 else x

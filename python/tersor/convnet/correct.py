"""Rounding the filters of convolutions with a look at what they meet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tersor.convnet.operations import Conv
from tersor.nn.int8_graph import quantized_filter

CORRECTIONS = ("bias", "gptq")
"""Names in `tersor.quantize.corrections.CORRECTIONS` that convolutions have."""

MEMORY = 2**28
"""Bytes of second moments of one convolution; larger ones are rounded to nearest, with their bias corrected."""

_PLACES = 28  # of a picture, along each side
_BLOCK = 64
_DAMPING = 0.01
_LARGEST = 127


class WindowMoments:
    """Mean and second moments of what the filters of a convolution meet, of up to 784 places of each picture.

    Attributes:
        count: of windows.
        mean: float32 [groups, depth], depth = in / groups * kernel_h * kernel_w.
        gram: the mean of x x^T, float32 [groups, depth, depth]; None where it would need more than MEMORY.
    """

    def __init__(self, conv: Conv, second: bool) -> None:
        groups, depth = conv.groups, conv.weight[0].numel()
        self.count = 0
        self.mean = torch.zeros(groups, depth)
        fits = second and 4 * groups * depth * depth <= MEMORY
        self.gram = torch.zeros(groups, depth, depth) if fits else None

    def add(self, conv: Conv, x: Tensor) -> None:
        """Takes an input [n, channels, height, width] in."""
        windows = _windows(conv, x)  # [groups, depth, count]
        self.count += windows.shape[2]
        part = windows.shape[2] / self.count
        self.mean.lerp_(windows.mean(2), part)
        if self.gram is not None:
            self.gram.baddbmm_(windows, windows.transpose(1, 2), beta=1 - part, alpha=part / windows.shape[2])


def _windows(conv: Conv, x: Tensor) -> Tensor:
    top, left, bottom, right = conv.pads
    x = F.pad(x.float(), (left, right, top, bottom))
    for axis, size in ((2, conv.weight.shape[2]), (3, conv.weight.shape[3])):
        stride, dilation = conv.stride[axis - 2], conv.dilation[axis - 2]
        x = x.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
        step = -(-x.shape[axis] // _PLACES)
        x = x[(slice(None),) * axis + (slice((step - 1) // 2, None, step),)]
    channels = x.shape[1]
    return x.permute(1, 4, 5, 0, 2, 3).reshape(conv.groups, channels // conv.groups * x.shape[4] * x.shape[5], -1)


def rounded(conv: Conv, moments: WindowMoments | None, corrections: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """int8 filters of the shape of the weight, float32 scales [out] and bias [out].

    Args:
        moments: of the inputs; None rounds to nearest, and the bias stays.
        corrections: names among CORRECTIONS. ``"gptq"`` rounds weight after weight and spreads the error of each over
            those that are left; a filter for which that is no better keeps the nearest integers. ``"bias"`` takes
            the mean of the error that is left back, which then does not count for gptq.
    """
    q, scale = quantized_filter(conv.weight)
    bias = torch.zeros(len(q)) if conv.bias is None else conv.bias.detach().float().clone()
    if moments is None or moments.count == 0:
        return q, scale, bias
    weight = conv.weight.detach().float().reshape(conv.groups, -1, moments.mean.shape[1])
    nearest = q.float().reshape(weight.shape)
    s = scale.reshape(weight.shape[:2])[:, :, None]
    chosen = nearest
    if "gptq" in corrections and moments.gram is not None:
        gram = moments.gram
        if "bias" in corrections:
            gram = gram - moments.mean[:, :, None] * moments.mean[:, None, :]
        tried = _spread(weight / s, gram)
        better = _error(tried - weight / s, gram) < _error(nearest - weight / s, gram)  # [groups, out / groups]
        chosen = torch.where(better[:, :, None], tried, nearest)
    if "bias" in corrections:
        bias -= ((chosen * s - weight) @ moments.mean[:, :, None]).flatten()
    return chosen.to(torch.int8).reshape(conv.weight.shape), scale, bias


def _error(difference: Tensor, gram: Tensor) -> Tensor:
    return ((difference @ gram) * difference).sum(2)


def _spread(units: Tensor, gram: Tensor) -> Tensor:
    """Integers for weights [groups, out, depth] in units of their scales, under second moments [groups, depth, depth].

    Source: Frantar et al., GPTQ, 2022 (arXiv 2210.17323), algorithm 1; inputs with large moments go first. Groups
    whose moments can't be factorised are rounded to nearest.
    """
    depth = units.shape[2]
    order = gram.diagonal(dim1=1, dim2=2).mean(0).argsort(descending=True)
    sorted_gram = gram[:, order][:, :, order].double()
    level = sorted_gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    sorted_gram.diagonal(dim1=1, dim2=2).add_(_DAMPING * level[:, None])
    lower, failed = torch.linalg.cholesky_ex(sorted_gram)
    lower[failed > 0] = torch.eye(depth, dtype=lower.dtype)
    factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    factor[failed > 0] = torch.eye(depth, dtype=lower.dtype)
    factor = factor.float()
    left, found = units[:, :, order].clone(), torch.empty_like(units)
    for begin in range(0, depth, _BLOCK):
        end = min(begin + _BLOCK, depth)
        errors = torch.empty(*units.shape[:2], end - begin)
        for j in range(begin, end):
            q = left[:, :, j].round().clamp(-_LARGEST, _LARGEST)
            found[:, :, order[j]] = q
            error = (left[:, :, j] - q) / factor[:, j, j, None]
            left[:, :, j:end] -= error[:, :, None] * factor[:, None, j, j:end]
            errors[:, :, j - begin] = error
        left[:, :, end:] -= errors @ factor[:, begin:end, end:]
    return found

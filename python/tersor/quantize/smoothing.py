"""Smoothing: moving the outliers of a layer's input into its weight before both are quantised to 8 bits.

The input channels of a linear layer often differ in size by a factor of 10 or more. One scale per row must cover the
largest of them, and the others are left with few of the 256 steps. Since x W^T = (x c) (W / c)^T for any c > 0 per
input channel, c may be chosen so that both sides are easy to quantise:

    c[k] = max |W[:, k]|^(1 - alpha) / max |x[:, k]|^alpha

Source: Xiao et al., "SmoothQuant: Accurate and efficient post-training quantization for large language models", 2022,
arXiv 2211.10438, equation 4; c is 1 / s there. Only the ratios within c matter: here they are taken to their median,
bounded, and the largest c is 1, so that x c can't overflow.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_RATIO = 100.0
"""No channel is moved further than this from the median channel, so c lies in [1 / LARGEST_RATIO**2, 1]."""

SMALLEST_SCALE = 1 / LARGEST_RATIO**2


def input_scale(weight_peak: Tensor, x_peak: Tensor, alpha: float = 0.5) -> Tensor:
    """The c of this module's formula.

    A channel that was always 0 in x says nothing about its size and is treated as the median one; so is a channel
    whose peak is not finite. A channel whose weights are all 0 doesn't matter to the result and gets the smallest c,
    which keeps it out of the range of x.

    Args:
        weight_peak: float [in_features], the largest |W| of each input channel.
        x_peak: float [in_features], the largest |x| of each input channel.
        alpha: in (0, 1], how much of the difficulty moves from x to the weight.

    Returns:
        float32 [in_features] in [SMALLEST_SCALE, 1], finite.

    Raises:
        ValueError: the peaks are not of one length, or alpha is outside (0, 1].
    """
    if weight_peak.dim() != 1 or weight_peak.shape != x_peak.shape:
        raise ValueError(f"expected two vectors of one length, got {list(weight_peak.shape)} and {list(x_peak.shape)}")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha: expected a number in (0, 1], got {alpha!r}")
    w, x = weight_peak.double(), x_peak.double()  # [in_features] each
    known = torch.isfinite(w) & torch.isfinite(x) & (x > 0)
    alive = known & (w > 0)
    if not bool(alive.any()):
        return torch.ones_like(w, dtype=torch.float32)
    c = torch.where(alive, w ** (1 - alpha) / x**alpha, torch.zeros_like(w))
    ratio = torch.where(known, c / c[alive].median(), torch.ones_like(c))
    ratio = ratio.clamp(1 / LARGEST_RATIO, LARGEST_RATIO)
    return (ratio / ratio.max()).to(torch.float32).clamp(SMALLEST_SCALE, 1)

"""What 8 bits do to a linear layer, in float arithmetic: without packing, one block of the weight at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from tersor.quantize.weight import dequantize_s8, quantize_s8_blocks

_TINY = torch.finfo(torch.float32).tiny


def fake_quantize(x: Tensor, x_scale: float = 0.0, x_zero_point: int = 0) -> Tensor:
    """The values that x float32 [m, k] has after quantisation to unsigned 8 bits, as in docs/kernels.md.

    Args:
        x_scale: 0 quantises each row by its own range; above 0: all rows with it and `x_zero_point` in [0, 255].
    """
    if x_scale > 0:
        scale, zero = torch.full((len(x), 1), x_scale), torch.full((len(x), 1), float(x_zero_point))
    else:
        low, high = x.amin(1, keepdim=True).clamp_max(0), x.amax(1, keepdim=True).clamp_min(0)  # [m, 1] each
        scale = (high / 255 - low / 255).clamp_min(_TINY)
        zero = (-low / scale).round().clamp(0, 255)
    return (x / scale).round().clamp(-zero, 255 - zero) * scale


def linear_error(
    weight: Tensor, x: Tensor, input_scale: Tensor | None = None, x_scale: float = 0.0, x_zero_point: int = 0
) -> float:
    """The error of an int8 layer on an input, ``|y - x W^T| / |x W^T|`` (2-norms); NaN where x W^T is 0 or not finite.

    Args:
        weight: float [n, k].
        x: float [m, k].
        input_scale: float32 [k] to smooth with, or None.
        x_scale, x_zero_point: static quantisation of the (smoothed) input; x_scale 0 means each row by its own range.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    wide = x.detach().to(torch.float32)
    quantized = fake_quantize(wide if input_scale is None else wide * input_scale, x_scale, x_zero_point)
    difference, reference = 0.0, 0.0
    for begin, q, scale in quantize_s8_blocks(weight, input_scale):
        y = wide @ weight.detach()[begin : begin + len(q)].to(torch.float32).t()  # [m, rows]
        reference += float(y.square().sum(dtype=torch.float64))
        difference += float((quantized @ dequantize_s8(q, scale).t() - y).square().sum(dtype=torch.float64))
    return (difference / reference) ** 0.5 if reference > 0 else float("nan")

"""The accelerated layer for a float layer whose weight was turned into codes elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tersor.nn.codebook_linear import CodebookLinear
from tersor.nn.float_linear import is_conv1d, weight_matrix
from tersor.nn.int8_linear import Int8Linear
from tersor.nn.packed_layer import DTYPE_NAMES
from tersor.nn.packed_linear import PackedLinear
from tersor.nn.registry import REGISTRY
from tersor.quantize.codebooks import Codes
from tersor.quantize.codebooks.codes import values


def layer_from_codes(
    module: nn.Module,
    codes: Codes,
    *,
    bias: Tensor | None = None,
    x_scale: float = 0.0,
    x_zero_point: int = 0,
    input_scale: Tensor | None = None,
) -> PackedLinear:
    """The layer that computes with exactly these integers, in place of a linear layer.

    8-bit codes with one scale per row become an Int8Linear, others a CodebookLinear.

    Args:
        module: nn.Linear or transformers' Conv1D.
        codes: of its weight ``[out, in]``, divided by `input_scale` where there is one.
        bias: float32 ``[out]``, added to the bias of the module.
        x_scale, x_zero_point, input_scale: as in Int8Linear.from_float.

    Raises:
        ValueError: the module or the codes can't become a layer.
    """
    settings: dict[str, Any] = {"x_scale": x_scale, "x_zero_point": x_zero_point}
    base = _with_bias(module, bias)
    int8 = codes.bits == 8 and codes.scale.shape[1] == 1
    if not int8:
        return CodebookLinear.from_codes(base, codes, **settings, input_scale=input_scale)
    codes.check()
    kind = REGISTRY["int8_conv1d"] if is_conv1d(module) else Int8Linear
    reason = kind.reason_against(base)
    if reason is not None:
        raise ValueError(reason)
    own: Tensor | None = base.bias  # type: ignore[assignment]
    config = {
        "out_features": len(codes.codes),
        "in_features": codes.codes.shape[1],
        "bias": own is not None,
        "dtype": DTYPE_NAMES[weight_matrix(module).dtype],
        "activation": "none",
        **settings,
        "smoothed": input_scale is not None,
    }
    layer = kind.from_config(config)
    tensors = {"weight_q": values(codes.codes, codes.table, codes.group_size), "weight_scale": codes.scale[:, 0]}
    if input_scale is not None:
        tensors["input_scale"] = input_scale
    if own is not None:
        tensors["bias"] = own.detach()
    layer.fill({name: tensor.contiguous() for name, tensor in tensors.items()})
    layer.training = module.training
    assert isinstance(layer, PackedLinear)
    return layer


def _with_bias(module: nn.Module, shift: Tensor | None) -> nn.Module:
    """The module, or one like it on the same weight with another bias."""
    if shift is None:
        return module
    weight: nn.Parameter = module.weight  # type: ignore[assignment]
    own: Tensor | None = module.bias  # type: ignore[assignment]
    bias = shift.to(weight.dtype) if own is None else (own.detach().to(torch.float32) + shift).to(own.dtype)
    with torch.device("meta"):
        if is_conv1d(module):
            other: nn.Module = type(module)(weight.shape[1], weight.shape[0])
        else:
            other = nn.Linear(weight.shape[1], weight.shape[0])
    other.weight, other.bias = weight, nn.Parameter(bias, requires_grad=False)
    other.training = module.training
    return other

"""From a float encoder block to the canonical tensors of a packed one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from tersor.encoder.family import Anatomy, part
from tersor.encoder.probe import float_weights, shape_of
from tersor.encoder.reference import NORMS, PRODUCTS
from tersor.nn.encoder_config import BlockConfig, Product, product_extents
from tersor.nn.float_linear import float_weight_problem
from tersor.nn.linear_config import checked_input_scale
from tersor.nn.packed_layer import DTYPE_NAMES
from tersor.nn.sparse_weight import compact, grid_of
from tersor.quantize import quantize_s8


def converted(
    module: nn.Module, anatomy: Anatomy, input_scales: Mapping[str, Tensor], patterns: Mapping[str, str]
) -> tuple[BlockConfig, dict[str, Tensor]]:
    """The config and the canonical tensors of a float block: see EncoderBlock.from_float.

    Raises:
        ValueError: a weight holds NaN or infinity or breaks its pattern, an input scale is not valid.
    """
    if unknown := {*input_scales, *patterns} - {*PRODUCTS}:
        raise ValueError(f"unknown product {', '.join(sorted(unknown))}; known: {', '.join(PRODUCTS)}")
    shape, weights = shape_of(module, anatomy), float_weights(module, anatomy)
    extents = product_extents(shape.hidden, shape.attention, shape.ffn)
    tensors: dict[str, Tensor] = {}
    products: dict[str, Product] = {}
    for name in PRODUCTS:
        (n, k), pattern, input_scale = extents[name], patterns.get(name), input_scales.get(name)
        if input_scale is not None:
            tensors[f"{name}.input_scale"] = checked_input_scale(input_scale, k)
        q, tensors[f"{name}.weight_scale"] = quantize_s8(weights[f"{name}.weight"], input_scale)
        kept = 0
        if pattern is not None:
            tensors[f"{name}.weight_mask"], q = compact(q, grid_of(pattern, n, k))
            kept = len(q)
        tensors[f"{name}.weight_q"] = q
        tensors[f"{name}.bias"] = weights[f"{name}.bias"].float()
        products[name] = Product(n, k, input_scale is not None, pattern, kept)
    for norm in NORMS:
        for key in ("weight", "bias"):
            tensors[f"{norm}.{key}"] = weights[f"{norm}.{key}"].float()
    config = BlockConfig(
        hidden=shape.hidden,
        heads=shape.heads,
        head_dim=shape.attention // shape.heads,
        ffn=shape.ffn,
        activation=shape.activation,
        norm_first=shape.norm_first,
        eps1=shape.eps1,
        eps2=shape.eps2,
        dtype=DTYPE_NAMES[weights["out.weight"].dtype],
        products=products,
    )
    return config, tensors


def weight_reason(module: nn.Module, anatomy: Anatomy) -> str | None:
    """Why the tensors of a float block can't be packed, or None when they can."""
    for path in anatomy.linears:
        layer = part(module, path)
        if layer is not None and (reason := float_weight_problem(layer)) is not None:
            return f"{path}: {reason}"
    for path in (*anatomy.norms, *(anatomy.qkv if len(anatomy.qkv) == 1 else ())):
        layer = part(module, path)
        for key, tensor in () if layer is None else layer.named_parameters(recurse=False):
            if tensor.dtype not in DTYPE_NAMES or tensor.device.type != "cpu":
                return f"{path}: its {key} is {tensor.dtype} on {tensor.device}; supported: floats of the CPU"
    return None

"""From a float encoder block, or one whose layers were converted, to the canonical tensors of a packed one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tersor.encoder.family import Anatomy, part
from tersor.encoder.probe import float_weights, shape_of
from tersor.encoder.reference import NORMS, PRODUCTS
from tersor.factorize.factored_linear import FactoredLinear
from tersor.nn.encoder_config import BlockConfig
from tersor.nn.encoder_integers import Integers, joined, of_converted, of_float
from tersor.nn.encoder_product import Product, product_extents
from tersor.nn.encoder_weight import gathered
from tersor.nn.float_linear import float_weight_problem
from tersor.nn.linear_config import checked_input_scale
from tersor.nn.lowrank_int8_linear import LowRankInt8Linear
from tersor.nn.packed_layer import DTYPE_NAMES
from tersor.nn.sparse_weight import compact, grid_of
from tersor.quantize import quantize_s8


def from_float_weights(
    module: nn.Module, anatomy: Anatomy, input_scales: Mapping[str, Tensor], patterns: Mapping[str, str]
) -> dict[str, Integers]:
    """The four products of a float block, rounded to int8: see EncoderBlock.from_float.

    Raises:
        ValueError: a weight holds NaN or infinity, an input scale is not valid, a name is unknown, a weight of low rank
            is said to have a pattern.
    """
    if unknown := {*input_scales, *patterns} - {*PRODUCTS}:
        raise ValueError(f"unknown product {', '.join(sorted(unknown))}; known: {', '.join(PRODUCTS)}")
    weights = float_weights(module, anatomy)
    products = {}
    for name in PRODUCTS:
        weight, input_scale = weights[f"{name}.weight"], input_scales.get(name)
        if input_scale is not None:
            input_scale = checked_input_scale(input_scale, weight.shape[1])
        layers = [part(module, path) for path in _paths(anatomy, name)]
        if any(isinstance(layer, FactoredLinear) for layer in layers):
            if name in patterns:
                raise ValueError(f"{name}: a weight of low rank has no pattern, got {patterns[name]!r}")
            products[name] = joined([of_float(layer, input_scale) for layer in layers if layer is not None])
            continue
        q, scale = quantize_s8(weight, input_scale)
        products[name] = Integers(q, scale, input_scale, weights[f"{name}.bias"].float(), patterns.get(name))
    return products


def from_converted_layers(module: nn.Module, anatomy: Anatomy, layers: Mapping[str, nn.Module]) -> dict[str, Integers]:
    """The four products of a block of which some layers were converted; the weights of the others are rounded to int8.

    `layers`: what stands for the layers at some paths.

    Raises:
        ValueError: a layer is of another kind or has a static range, or those of queries, keys and values can't be one.
    """
    weights = float_weights(module, anatomy) if len(anatomy.qkv) == 1 else {}
    products = {}
    for name in PRODUCTS:
        paths = _paths(anatomy, name)
        if f"{name}.weight" in weights and paths[0] not in layers:
            q, scale = quantize_s8(weights[f"{name}.weight"])
            products[name] = Integers(q, scale, None, weights[f"{name}.bias"].float(), None)
        else:
            products[name] = joined([of_converted(path, layers.get(path)) for path in paths])
    return products


def _paths(anatomy: Anatomy, product: str) -> tuple[str, ...]:
    return anatomy.qkv if product == "qkv" else (getattr(anatomy, product),)


def canonical(
    module: nn.Module, anatomy: Anatomy, products: Mapping[str, Integers]
) -> tuple[BlockConfig, dict[str, Tensor]]:
    """The config and the canonical tensors of a block; raises ValueError where a weight breaks its N:M pattern."""
    shape = shape_of(module, anatomy)
    extents = product_extents(shape.hidden, shape.attention, shape.ffn)
    tensors: dict[str, Tensor] = {}
    described: dict[str, Product] = {}
    for name, product in products.items():
        (n, k), kept, pattern = extents[name], 0, product.pattern
        tensors[f"{name}.bias"] = product.bias
        if product.down is not None:
            tensors[f"{name}.weight_down_q"], tensors[f"{name}.weight_down_scale"] = product.down
            tensors[f"{name}.weight_up_q"] = gathered(product.q, product.ranks)
            tensors[f"{name}.weight_up_scale"] = product.scale
        else:
            tensors[f"{name}.weight_q"], tensors[f"{name}.weight_scale"] = product.q, product.scale
        if pattern is not None:
            tensors[f"{name}.weight_mask"], values = compact(product.q, grid_of(pattern, n, k))
            tensors[f"{name}.weight_q"], kept = values, len(values)
        if product.input_scale is not None:
            tensors[f"{name}.input_scale"] = product.input_scale
        described[name] = Product(n, k, product.input_scale is not None, pattern, kept, product.ranks)
    for norm in NORMS:
        layer: Any = part(module, getattr(anatomy, norm))
        for key in ("weight", "bias"):
            tensors[f"{norm}.{key}"] = getattr(layer, key).detach().float()
    config = BlockConfig(
        hidden=shape.hidden,
        heads=shape.heads,
        head_dim=shape.attention // shape.heads,
        ffn=shape.ffn,
        activation=shape.activation,
        norm_first=shape.norm_first,
        eps1=shape.eps1,
        eps2=shape.eps2,
        dtype=DTYPE_NAMES[layer.weight.dtype],
        products=described,
    )
    return config, tensors


def weight_reason(module: nn.Module, anatomy: Anatomy) -> str | None:
    """Why the tensors of a float block can't be packed, or None when they can."""
    for path in anatomy.linears:
        layer = part(module, path)
        check = LowRankInt8Linear.reason_against if isinstance(layer, FactoredLinear) else float_weight_problem
        if layer is not None and (reason := check(layer)) is not None:
            return f"{path}: {reason}"
    return tensor_reason(module, anatomy)


def tensor_reason(module: nn.Module, anatomy: Anatomy) -> str | None:
    """The same, of what is no linear layer: its norms, and an nn.MultiheadAttention."""
    for path in (*anatomy.norms, *(anatomy.qkv if len(anatomy.qkv) == 1 else ())):
        layer = part(module, path)
        for key, tensor in () if layer is None else layer.named_parameters(recurse=False):
            if tensor.dtype not in DTYPE_NAMES or tensor.device.type != "cpu":
                return f"{path}: its {key} is {tensor.dtype} on {tensor.device}; supported: floats of the CPU"
    return None

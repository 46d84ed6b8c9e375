"""From a float encoder block, or one whose layers were converted, to the canonical tensors of a packed one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tersor.encoder.family import Anatomy, part
from tersor.encoder.probe import float_weights, shape_of
from tersor.encoder.reference import NORMS, PRODUCTS
from tersor.nn.encoder_config import BlockConfig, Product, product_extents
from tersor.nn.float_linear import float_weight_problem
from tersor.nn.int8_linear import Int8Linear
from tersor.nn.linear_config import checked_input_scale
from tersor.nn.packed_layer import DTYPE_NAMES
from tersor.nn.sparse_int8_linear import SparseInt8Linear
from tersor.nn.sparse_weight import compact, expand, grid_of
from tersor.quantize import quantize_s8


class Integers(NamedTuple):
    """The weight of one product: q int8 [n, k] times scale [n] (times input_scale [k]), its bias, how its zeros lie."""

    q: Tensor
    scale: Tensor
    input_scale: Tensor | None
    bias: Tensor
    pattern: str | None


def from_float_weights(
    module: nn.Module, anatomy: Anatomy, input_scales: Mapping[str, Tensor], patterns: Mapping[str, str]
) -> dict[str, Integers]:
    """The four products of a float block, rounded to int8: see EncoderBlock.from_float.

    Raises:
        ValueError: a weight holds NaN or infinity, an input scale is not valid, a name is unknown.
    """
    if unknown := {*input_scales, *patterns} - {*PRODUCTS}:
        raise ValueError(f"unknown product {', '.join(sorted(unknown))}; known: {', '.join(PRODUCTS)}")
    weights = float_weights(module, anatomy)
    products = {}
    for name in PRODUCTS:
        weight, input_scale = weights[f"{name}.weight"], input_scales.get(name)
        if input_scale is not None:
            input_scale = checked_input_scale(input_scale, weight.shape[1])
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
        paths = anatomy.qkv if name == "qkv" else (getattr(anatomy, name),)
        if f"{name}.weight" in weights and paths[0] not in layers:
            q, scale = quantize_s8(weights[f"{name}.weight"])
            products[name] = Integers(q, scale, None, weights[f"{name}.bias"].float(), None)
        else:
            products[name] = _joined([_integers(path, layers.get(path)) for path in paths])
    return products


def _integers(path: str, layer: nn.Module | None) -> Integers:
    if type(layer) not in (Int8Linear, SparseInt8Linear):
        raise ValueError(f"its {path} becomes a {type(layer).__name__}, not an int8 layer")
    assert isinstance(layer, Int8Linear)
    if layer.x_scale:
        raise ValueError(f"the input of its {path} has a static range; a block measures its own")
    tensors, pattern = layer.canonical_tensors(), None
    q = tensors["weight_q"]
    if isinstance(layer, SparseInt8Linear):
        q, pattern = expand(tensors["weight_mask"], q, layer.grid), layer.pattern
    bias = tensors["bias"].float() if "bias" in tensors else torch.zeros(layer.out_features)
    return Integers(q, tensors["weight_scale"], tensors.get("input_scale"), bias, pattern)


def _joined(parts: list[Integers]) -> Integers:
    first = parts[0]
    for other in parts[1:]:
        one, two = first.input_scale, other.input_scale
        if (one is None) != (two is None) or (one is not None and two is not None and not torch.equal(one, two)):
            raise ValueError("its queries, keys and values are smoothed in different ways")
    patterns = {part.pattern for part in parts}
    return Integers(
        torch.cat([part.q for part in parts]),
        torch.cat([part.scale for part in parts]),
        first.input_scale,
        torch.cat([part.bias for part in parts]),
        patterns.pop() if len(patterns) == 1 else None,
    )


def canonical(
    module: nn.Module, anatomy: Anatomy, products: Mapping[str, Integers]
) -> tuple[BlockConfig, dict[str, Tensor]]:
    """The config and the canonical tensors of a block; raises ValueError where a weight breaks its N:M pattern."""
    shape = shape_of(module, anatomy)
    extents = product_extents(shape.hidden, shape.attention, shape.ffn)
    tensors: dict[str, Tensor] = {}
    described: dict[str, Product] = {}
    for name, (q, scale, input_scale, bias, pattern) in products.items():
        (n, k), kept = extents[name], 0
        tensors[f"{name}.weight_q"], tensors[f"{name}.weight_scale"], tensors[f"{name}.bias"] = q, scale, bias
        if pattern is not None:
            tensors[f"{name}.weight_mask"], values = compact(q, grid_of(pattern, n, k))
            tensors[f"{name}.weight_q"], kept = values, len(values)
        if input_scale is not None:
            tensors[f"{name}.input_scale"] = input_scale
        described[name] = Product(n, k, input_scale is not None, pattern, kept)
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
        if layer is not None and (reason := float_weight_problem(layer)) is not None:
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

"""The packed weights of an encoder block: one uint8 [bytes] tensor that holds four packed weights, biases and norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor._native import core
from tersor.encoder.reference import PRODUCTS
from tersor.nn.encoder_config import BlockConfig, Product
from tersor.nn.packed_weight import pack_canonical, room, unpack
from tersor.nn.sparse_packed import pack_sparse_s8, unpack_sparse_s8
from tersor.nn.sparse_weight import compact, expand, grid_of
from tersor.quantize import dequantize_s8

_NATIVE = {"qkv": "qkv", "out": "out", "up": "ffn_in", "down": "ffn_out"}
_FLOATS = {
    **{f"{name}.bias": f"{native}_bias" for name, native in _NATIVE.items()},
    "norm1.weight": "gamma1",
    "norm1.bias": "beta1",
    "norm2.weight": "gamma2",
    "norm2.bias": "beta2",
}


def pack_block(config: BlockConfig, tensors: Mapping[str, Tensor]) -> Tensor:
    """Packs the canonical tensors of a block; raises ValueError or TersorError for values out of range."""
    for name in _FLOATS:
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ValueError(f"{name} holds NaN or infinity")
    settings = {
        "hidden": config.hidden,
        "heads": config.heads,
        "head_dim": config.head_dim,
        "ffn": config.ffn,
        "activation": config.activation,
        "norm_first": config.norm_first,
        "eps1": config.eps1,
        "eps2": config.eps2,
        "scale": config.head_dim**-0.5,
    }
    weights = [_pack_product(name, config.products[name], tensors).numpy() for name in PRODUCTS]
    floats = {name: tensors[name].contiguous().numpy() for name in _FLOATS}
    biases = [floats[f"{name}.bias"] for name in PRODUCTS]
    norms = [floats[f"{norm}.{key}"] for norm in ("norm1", "norm2") for key in ("weight", "bias")]
    block = torch.from_numpy(core().pack_encoder_block(settings, *weights, biases, norms))
    with torch.inference_mode(False):
        return room(block.numel()).copy_(block)


def _pack_product(name: str, product: Product, tensors: Mapping[str, Tensor]) -> Tensor:
    q, scale = tensors[f"{name}.weight_q"], tensors[f"{name}.weight_scale"]
    input_scale = tensors.get(f"{name}.input_scale")
    if input_scale is not None and not bool((torch.isfinite(input_scale) & (input_scale > 0)).all()):
        raise ValueError(f"{name}.input_scale: expected values that are finite and greater than 0")
    if product.pattern is None:
        return pack_canonical(q, scale, input_scale)
    grid = grid_of(product.pattern, product.n, product.k)
    return pack_sparse_s8(expand(tensors[f"{name}.weight_mask"], q, grid), scale, input_scale)


def unpack_block(packed: Tensor, config: BlockConfig) -> dict[str, Tensor]:
    """The canonical tensors of a block, fresh."""
    tensors: dict[str, Tensor] = {}
    for name, product in config.products.items():
        q, scale, input_scale = _unpack_product(packed, name, product)
        if product.pattern is None:
            tensors[f"{name}.weight_q"] = q
        else:
            mask, values = compact(q, grid_of(product.pattern, product.n, product.k))
            tensors[f"{name}.weight_mask"], tensors[f"{name}.weight_q"] = mask, values
        tensors[f"{name}.weight_scale"] = scale
        if input_scale is not None:
            tensors[f"{name}.input_scale"] = input_scale
    return {**tensors, **{name: _floats(packed, name) for name in _FLOATS}}


def _unpack_product(packed: Tensor, name: str, product: Product) -> tuple[Tensor, Tensor, Tensor | None]:
    entry = next(part for part in inspect_block(packed)["parts"] if part["name"] == _NATIVE[name])
    begin, size = entry["offset"], entry["bytes"]
    weight = packed[begin : begin + size]
    if entry["kind"] == "sparse":
        return unpack_sparse_s8(weight)
    values = core().input_scale_s8(weight.numpy())
    return (*unpack(weight, product.n, product.k), None if values is None else torch.from_numpy(values))


def _floats(packed: Tensor, name: str) -> Tensor:
    offset, count = inspect_block(packed)["floats"][_FLOATS[name]]
    values: Any = np.frombuffer(packed[offset : offset + 4 * count].numpy().tobytes(), np.float32)
    return torch.from_numpy(values.copy())


def inspect_block(packed: Tensor) -> dict[str, Any]:
    """What the native code says about a packed block."""
    found: dict[str, Any] = core().inspect_encoder_block(packed.numpy())
    return found


_NAMES = (*PRODUCTS, *_FLOATS)


def part_of(packed: Tensor, name: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A weight [n, k] of a block by the name of its product, or its floats [n] as [1, n], in `dtype`."""
    tensor: Tensor = read_part(packed, _NAMES.index(name), *shape, dtype)
    return tensor


@torch.library.custom_op("tersor::encoder_part", mutates_args=())
def read_part(packed: Tensor, part: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """A tensor of a packed encoder block, `dtype` [rows, columns]; parts are numbered: four weights, then floats."""
    name = _NAMES[part]
    if name not in _NATIVE:
        return _floats(packed, name).to(dtype).view(rows, columns)
    q, scale, input_scale = _unpack_product(packed, name, Product(rows, columns, False, None, 0))
    return dequantize_s8(q, scale, input_scale).to(dtype)


@read_part.register_fake
def _read_part_fake(packed: Tensor, part: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return packed.new_empty((rows, columns), dtype=dtype)

"""The packed weights of an encoder block: one uint8 [bytes] tensor that holds four packed weights, biases and norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor._native import core
from tersor.encoder.reference import PRODUCTS
from tersor.nn.encoder_config import BlockConfig
from tersor.nn.encoder_weight import float_factors, float_weight, pack_product, unpack_product
from tersor.nn.packed_weight import room

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
    weights = [pack_product(name, config.products[name], tensors).numpy() for name in PRODUCTS]
    floats = {name: tensors[name].contiguous().numpy() for name in _FLOATS}
    biases = [floats[f"{name}.bias"] for name in PRODUCTS]
    norms = [floats[f"{norm}.{key}"] for norm in ("norm1", "norm2") for key in ("weight", "bias")]
    block = torch.from_numpy(core().pack_encoder_block(settings, *weights, biases, norms))
    with torch.inference_mode(False):
        return room(block.numel()).copy_(block)


def unpack_block(packed: Tensor, config: BlockConfig) -> dict[str, Tensor]:
    """The canonical tensors of a block, fresh."""
    tensors: dict[str, Tensor] = {}
    for name, product in config.products.items():
        tensors |= unpack_product(*_weight(packed, name), name, product)
    return {**tensors, **{name: _floats(packed, name) for name in _FLOATS}}


def _weight(packed: Tensor, name: str) -> tuple[Tensor, str]:
    """The packed weight of a product and its kind."""
    entry = next(part for part in inspect_block(packed)["parts"] if part["name"] == _NATIVE[name])
    return packed[entry["offset"] : entry["offset"] + entry["bytes"]], entry["kind"]


def _floats(packed: Tensor, name: str) -> Tensor:
    offset, count = inspect_block(packed)["floats"][_FLOATS[name]]
    values: Any = np.frombuffer(packed[offset : offset + 4 * count].numpy().tobytes(), np.float32)
    return torch.from_numpy(values.copy())


def inspect_block(packed: Tensor) -> dict[str, Any]:
    """What the native code says about a packed block."""
    found: dict[str, Any] = core().inspect_encoder_block(packed.numpy())
    return found


_FACTORS = tuple(f"{name}.{factor}" for name in PRODUCTS for factor in ("weight_down", "weight_up"))
_NAMES = (*PRODUCTS, *_FLOATS, *_FACTORS)


def part_of(packed: Tensor, name: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A tensor of a block in `dtype`.

    Args:
        name: that of a product for its weight [n, k]; with ".weight_down" [rank, k] or ".weight_up" [n, rank] for the
            factors of one of low rank; or that of floats [n], which come as [1, n].
    """
    tensor: Tensor = read_part(packed, _NAMES.index(name), *shape, dtype)
    return tensor


@torch.library.custom_op("tersor::encoder_part", mutates_args=())
def read_part(packed: Tensor, part: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """A tensor of a packed encoder block, `dtype` [rows, columns]; `part` is the place of its name in _NAMES."""
    name = _NAMES[part]
    if name in _NATIVE:
        return float_weight(*_weight(packed, name), rows, columns).to(dtype)
    if name in _FACTORS:
        product, _, factor = name.partition(".")
        return float_factors(_weight(packed, product)[0])[factor].to(dtype)
    return _floats(packed, name).to(dtype).view(rows, columns)


@read_part.register_fake
def _read_part_fake(packed: Tensor, part: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return packed.new_empty((rows, columns), dtype=dtype)

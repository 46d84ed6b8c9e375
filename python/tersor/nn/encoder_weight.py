"""The weight of one product of an encoder block: dense, sparse or of low rank, between its tensors and packed bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tersor._native import core
from tersor.nn.encoder_product import Product
from tersor.nn.lowrank_packed import pack_lowrank_s8, unpack_lowrank_s8
from tersor.nn.packed_weight import pack_canonical, unpack
from tersor.nn.sparse_packed import pack_sparse_s8, unpack_sparse_s8
from tersor.nn.sparse_weight import compact, expand, grid_of
from tersor.quantize import dequantize_s8


def pack_product(name: str, product: Product, tensors: Mapping[str, Tensor]) -> Tensor:
    """Packs the weight; raises ValueError or TersorError for values out of range."""
    input_scale = tensors.get(f"{name}.input_scale")
    if input_scale is not None and not bool((torch.isfinite(input_scale) & (input_scale > 0)).all()):
        raise ValueError(f"{name}.input_scale: expected values that are finite and greater than 0")
    if product.ranks:
        factors = {key: tensors[f"{name}.weight_{key}"] for key in ("down_q", "down_scale", "up_q", "up_scale")}
        up = spread(factors["up_q"], product.ranks)
        return pack_lowrank_s8((factors["down_q"], factors["down_scale"]), (up, factors["up_scale"]), input_scale)
    q, scale = tensors[f"{name}.weight_q"], tensors[f"{name}.weight_scale"]
    if product.pattern is None:
        return pack_canonical(q, scale, input_scale)
    grid = grid_of(product.pattern, product.n, product.k)
    return pack_sparse_s8(expand(tensors[f"{name}.weight_mask"], q, grid), scale, input_scale)


def unpack_product(packed: Tensor, kind: str, name: str, product: Product) -> dict[str, Tensor]:
    """The tensors that were packed, fresh. `kind`: what the native code calls it."""
    if kind == "low_rank":
        down, up, input_scale = unpack_lowrank_s8(packed)
        tensors = {"weight_down_q": down[0], "weight_down_scale": down[1]}
        tensors |= {"weight_up_q": gathered(up[0], product.ranks), "weight_up_scale": up[1]}
    else:
        q, scale, input_scale = _integers(packed, kind, product.n, product.k)
        tensors = {"weight_q": q, "weight_scale": scale}
    if product.pattern is not None:
        grid = grid_of(product.pattern, product.n, product.k)
        tensors["weight_mask"], tensors["weight_q"] = compact(tensors["weight_q"], grid)
    if input_scale is not None:
        tensors["input_scale"] = input_scale
    return {f"{name}.{key}": value for key, value in tensors.items()}


def float_weight(packed: Tensor, kind: str, n: int, k: int) -> Tensor:
    """What the packed bytes stand for, float32 [n, k]."""
    if kind == "low_rank":
        factors = float_factors(packed)
        return factors["weight_up"] @ factors["weight_down"]
    return dequantize_s8(*_integers(packed, kind, n, k))


def float_factors(packed: Tensor) -> dict[str, Tensor]:
    """weight_down [rank, k] and weight_up [n, rank], float32, of a weight of low rank."""
    down, up, input_scale = unpack_lowrank_s8(packed)
    return {"weight_down": dequantize_s8(*down, input_scale), "weight_up": dequantize_s8(*up)}


def _integers(packed: Tensor, kind: str, n: int, k: int) -> tuple[Tensor, Tensor, Tensor | None]:
    if kind == "sparse":
        return unpack_sparse_s8(packed)
    values = core().input_scale_s8(packed.numpy())
    return (*unpack(packed, n, k), None if values is None else torch.from_numpy(values))


def spread(values: Tensor, ranks: Sequence[int]) -> Tensor:
    """Second factors [n / parts, rank] that lie one behind another in `values`, as [n, sum of ranks].

    Each takes its own columns, those of its first factor; the rest is 0.
    """
    rows = values.numel() // sum(ranks)
    q, begin, column = values.new_zeros(rows * len(ranks), sum(ranks)), 0, 0
    for index, rank in enumerate(ranks):
        part = values[begin : begin + rows * rank].view(rows, rank)
        q[index * rows : (index + 1) * rows, column : column + rank] = part
        begin, column = begin + rows * rank, column + rank
    return q


def gathered(spread_out: Tensor, ranks: Sequence[int]) -> Tensor:
    """The inverse of `spread`."""
    rows, parts, column = len(spread_out) // len(ranks), [], 0
    for index, rank in enumerate(ranks):
        parts.append(spread_out[index * rows : (index + 1) * rows, column : column + rank].flatten())
        column += rank
    return torch.cat(parts)

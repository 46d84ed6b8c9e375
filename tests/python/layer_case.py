"""The examples that the contract tests run for every kind of linear layer: plain, and smoothed where it can be."""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tersor.nn import REGISTRY, PackedLayer
from tersor.nn.codebook_packed import unpack_codes
from tersor.nn.float_linear import weight_matrix
from tersor.nn.lowrank_layer import LowRankLayer
from tersor.nn.packed_linear import PackedLinear
from tersor.nn.sparse_layer import SparseLayer
from tersor.nn.sparse_weight import expand
from tersor.quantize.codebooks import decode

SMOOTHED = " smoothed"
CASES = [
    case
    for kind, cls in sorted(REGISTRY.items())
    if issubclass(cls, PackedLinear)
    for case in (kind, *([kind + SMOOTHED] if "input_scale" in cls.optional else []))
]
NEEDS = {kind: "transformers" for kind in REGISTRY if kind.endswith("int8_conv1d") or kind == "sparse_conv1d"}


class LayerCase(NamedTuple):
    cls: type[PackedLayer]
    module: nn.Module
    layer: PackedLayer
    x: Tensor
    settings: dict[str, Any]  # of from_float


def make_case(name: str) -> LayerCase:
    kind = name.removesuffix(SMOOTHED)
    if kind in NEEDS and importlib.util.find_spec(NEEDS[kind]) is None:
        pytest.skip(f"{kind} needs {NEEDS[kind]}")
    torch.manual_seed(0)
    torch._dynamo.reset()
    cls = REGISTRY[kind]
    module, x = cls.float_example()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    if issubclass(cls, SparseLayer):
        with torch.no_grad():
            weight_matrix(module)[torch.rand(33, 18).repeat_interleave(4, 1)[:, :70] < 0.7] = 0
    settings = {}
    if name.endswith(SMOOTHED):
        x[..., ::7] *= 30
        settings["input_scale"] = torch.rand(x.shape[-1]) + 0.01
        settings["input_scale"][::7] /= 30
    return LayerCase(cls, module.eval(), cls.from_float(module, **settings), x, settings)


def stored_weight(layer: PackedLayer) -> tuple[Tensor, Tensor]:
    """What the canonical tensors hold: integers or floats [out, in], and what their rows are multiplied by."""
    canonical = layer.canonical_tensors()
    if "weight_codes" in canonical:
        weight = decode(unpack_codes(layer.packed)[0])
        return weight, torch.ones(len(weight))
    weight = canonical.get("weight_q", canonical.get("weight_values"))
    if "weight_mask" in canonical:
        weight = expand(canonical["weight_mask"], weight, layer.grid)
    return weight, canonical.get("weight_scale", torch.ones(len(weight)))


def stored_factors(layer: PackedLayer) -> tuple[Tensor, Tensor]:
    """The factors [rank, in], without smoothing, and [out, rank] that a low-rank layer's canonical tensors hold."""
    canonical = layer.canonical_tensors()
    if "weight_down" in canonical:
        return canonical["weight_down"], canonical["weight_up"]
    down, up = (canonical[f"weight_{part}_q"] * canonical[f"weight_{part}_scale"][:, None] for part in ("down", "up"))
    return down, up


def whole_weight(layer: PackedLayer) -> Tensor:
    """The weight [out, in] that the canonical tensors stand for."""
    smoothing = layer.canonical_tensors().get("input_scale", torch.ones(()))
    if isinstance(layer, LowRankLayer):
        down, up = stored_factors(layer)
        return up @ (down * smoothing)
    weight, scale = stored_weight(layer)
    return weight * scale[:, None] * smoothing


def float_keys(layer: PackedLayer) -> tuple[str, ...]:
    """The weights in the state dict of the float layer."""
    return ("weight_down", "weight_up") if isinstance(layer, LowRankLayer) else ("weight",)


def values(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


def same(one: nn.Module, other: nn.Module, x: Tensor) -> bool:
    return torch.equal(values(one, x), values(other, x))

"""The example that the contract tests run for every kind of replacement layer."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tersor.nn import REGISTRY, PackedLayer

KINDS = sorted(REGISTRY)
NEEDS = {"int8_conv1d": "transformers"}


class LayerCase(NamedTuple):
    cls: type[PackedLayer]
    module: nn.Module
    layer: PackedLayer
    x: Tensor


def make_case(kind: str) -> LayerCase:
    if kind in NEEDS and importlib.util.find_spec(NEEDS[kind]) is None:
        pytest.skip(f"{kind} needs {NEEDS[kind]}")
    torch.manual_seed(0)
    torch._dynamo.reset()
    cls = REGISTRY[kind]
    module, x = cls.float_example()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return LayerCase(cls, module.eval(), cls.from_float(module), x)


def values(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


def same(one: nn.Module, other: nn.Module, x: Tensor) -> bool:
    return torch.equal(values(one, x), values(other, x))

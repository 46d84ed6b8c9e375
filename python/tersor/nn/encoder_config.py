"""The description of an encoder block, as it stands in a file, and its checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tersor.encoder.reference import PRODUCTS
from tersor.nn.encoder_product import Product, parse_product, product_extents
from tersor.nn.packed_layer import DTYPES, Expected
from tersor.ops import ACTIVATIONS

_MAX_EXTENT = 1 << 20
_COUNTS = ("hidden", "heads", "head_dim", "ffn")
_KEYS = (*_COUNTS, "activation", "norm_first", "eps1", "eps2", "dtype", *PRODUCTS)


@dataclass(frozen=True)
class BlockConfig:
    """What an encoder block is made of."""

    hidden: int
    heads: int
    head_dim: int
    ffn: int
    activation: str
    norm_first: bool
    eps1: float
    eps2: float
    dtype: str
    products: Mapping[str, Product]

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> BlockConfig:
        """From plain data; raises ValueError for a key or a value that is not as `plain` gives it."""
        if not isinstance(config, Mapping) or set(config) != set(_KEYS):
            got = sorted(map(str, config)) if isinstance(config, Mapping) else type(config).__name__
            raise ValueError(f"config: expected exactly {', '.join(_KEYS)}, got {got}")
        for name in _COUNTS:
            _check(type(config[name]) is int and 0 < config[name] <= _MAX_EXTENT, name, "a positive integer", config)
        _check(config["heads"] * config["head_dim"] <= _MAX_EXTENT, "head_dim", "a smaller integer", config)
        for name, known in (("activation", ACTIVATIONS), ("dtype", DTYPES)):
            value = config[name]
            _check(isinstance(value, str) and value in known, name, f"one of {', '.join(known)}", config)
        _check(type(config["norm_first"]) is bool, "norm_first", "true or false", config)
        for name in ("eps1", "eps2"):
            value = config[name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            _check(number and math.isfinite(value) and 0 <= value <= 1, name, "a number in [0, 1]", config)
        extents = product_extents(config["hidden"], config["heads"] * config["head_dim"], config["ffn"])
        products = {name: parse_product(name, config[name], *extents[name]) for name in PRODUCTS}
        rest = {name: config[name] for name in (*_COUNTS, "activation", "norm_first", "dtype")}
        return cls(**rest, eps1=float(config["eps1"]), eps2=float(config["eps2"]), products=products)

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        rest = {name: getattr(self, name) for name in _KEYS if name not in PRODUCTS}
        return {**rest, **{name: product.plain() for name, product in self.products.items()}}

    def expected(self) -> Expected:
        """Names, dtypes and shapes of the canonical tensors."""
        tensors: Expected = {}
        for name, product in self.products.items():
            tensors |= product.expected(name)
        norms = [f"{norm}.{key}" for norm in ("norm1", "norm2") for key in ("weight", "bias")]
        return {**tensors, **dict.fromkeys(norms, (torch.float32, (self.hidden,)))}


def _check(fits: bool, name: str, expected: str, config: Mapping[str, Any]) -> None:
    if not fits:
        raise ValueError(f"{name}: expected {expected}, got {config[name]!r}")

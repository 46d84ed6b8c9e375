"""The description of an encoder block, as it stands in a file, and its checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tersor.encoder.reference import PRODUCTS
from tersor.nn.packed_layer import DTYPES, Expected
from tersor.nn.sparse_weight import grid_of
from tersor.ops import ACTIVATIONS

_MAX_EXTENT = 1 << 20
_COUNTS = ("hidden", "heads", "head_dim", "ffn")
_KEYS = (*_COUNTS, "activation", "norm_first", "eps1", "eps2", "dtype", *PRODUCTS)


@dataclass(frozen=True)
class Product:
    """One of the four products of a block.

    Attributes:
        n, k: outputs and inputs.
        smoothed: x is multiplied by an input_scale before it is quantised.
        pattern: how the zeros of its weight lie; None: it is dense.
        kept: blocks of the pattern that are not 0; 0 where it is dense.
    """

    n: int
    k: int
    smoothed: bool
    pattern: str | None
    kept: int

    @property
    def stored(self) -> int:
        """The number of weights that are stored."""
        return self.n * self.k if self.pattern is None else self.kept * grid_of(self.pattern, self.n, self.k).area

    def expected(self, name: str) -> Expected:
        """Names, dtypes and shapes of its tensors."""
        tensors: Expected = {f"{name}.weight_scale": (torch.float32, (self.n,))}
        if self.pattern is None:
            tensors[f"{name}.weight_q"] = (torch.int8, (self.n, self.k))
        else:
            grid = grid_of(self.pattern, self.n, self.k)
            tensors[f"{name}.weight_mask"] = (torch.uint8, (grid.mask_bytes,))
            tensors[f"{name}.weight_q"] = (torch.int8, (self.kept, grid.area))
        if self.smoothed:
            tensors[f"{name}.input_scale"] = (torch.float32, (self.k,))
        tensors[f"{name}.bias"] = (torch.float32, (self.n,))
        return tensors


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
        products = {name: _product(name, config[name], *extents[name]) for name in PRODUCTS}
        rest = {name: config[name] for name in (*_COUNTS, "activation", "norm_first", "dtype")}
        return cls(**rest, eps1=float(config["eps1"]), eps2=float(config["eps2"]), products=products)

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        rest = {name: getattr(self, name) for name in _KEYS if name not in PRODUCTS}
        products = {
            name: {"smoothed": product.smoothed, "pattern": product.pattern, "kept": product.kept}
            for name, product in self.products.items()
        }
        return {**rest, **products}

    def expected(self) -> Expected:
        """Names, dtypes and shapes of the canonical tensors."""
        tensors: Expected = {}
        for name, product in self.products.items():
            tensors |= product.expected(name)
        norms = [f"{norm}.{key}" for norm in ("norm1", "norm2") for key in ("weight", "bias")]
        return {**tensors, **dict.fromkeys(norms, (torch.float32, (self.hidden,)))}


def product_extents(hidden: int, attention: int, ffn: int) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the four products; `attention` is heads * head_dim."""
    return {
        "qkv": (3 * attention, hidden),
        "out": (hidden, attention),
        "up": (ffn, hidden),
        "down": (hidden, ffn),
    }


def _product(name: str, config: Any, n: int, k: int) -> Product:
    if not isinstance(config, Mapping) or set(config) != {"smoothed", "pattern", "kept"}:
        raise ValueError(f"{name}: expected exactly smoothed, pattern and kept, got {config!r}")
    smoothed, pattern, kept = config["smoothed"], config["pattern"], config["kept"]
    if type(smoothed) is not bool:
        raise ValueError(f"{name}: smoothed: expected true or false, got {smoothed!r}")
    most = 0 if pattern is None else grid_of(pattern, n, k).blocks
    if type(kept) is not int or not 0 <= kept <= most:
        raise ValueError(f"{name}: kept: expected an integer in [0, {most}], got {kept!r}")
    return Product(n, k, smoothed, pattern, kept)


def _check(fits: bool, name: str, expected: str, config: Mapping[str, Any]) -> None:
    if not fits:
        raise ValueError(f"{name}: expected {expected}, got {config[name]!r}")

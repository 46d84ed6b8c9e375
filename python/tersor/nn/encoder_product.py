"""One of the four products of an encoder block: its description, as it stands in a file, and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tersor.nn.lowrank_layer import MAX_IN_FEATURES
from tersor.nn.packed_layer import Expected
from tersor.nn.sparse_weight import grid_of

_KEYS = ("smoothed", "pattern", "kept")


@dataclass(frozen=True)
class Product:
    """One of the four products of a block.

    Attributes:
        n, k: outputs and inputs.
        smoothed: x is multiplied by an input_scale before it is quantised.
        pattern: how the zeros of its weight lie; None: it is dense.
        kept: blocks of the pattern that are not 0; 0 where it is dense.
        ranks: of a weight that is the product of two factors; three of them for queries, keys and values. Empty: it is
            one matrix.
    """

    n: int
    k: int
    smoothed: bool
    pattern: str | None
    kept: int
    ranks: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """Columns of the second factor; 0 where there is none."""
        return sum(self.ranks)

    @property
    def stored(self) -> int:
        """The number of weights that are stored."""
        if self.ranks:
            return self.rank * (self.n + self.k)
        return self.n * self.k if self.pattern is None else self.kept * grid_of(self.pattern, self.n, self.k).area

    @property
    def kind(self) -> str:
        """What it is, in words."""
        if self.ranks:
            return f"low-rank int8 {'+'.join(map(str, self.ranks))}"
        return "int8" if self.pattern is None else f"sparse int8 {self.pattern}"

    def expected(self, name: str) -> Expected:
        """Names, dtypes and shapes of its tensors."""
        tensors: Expected = {}
        if self.ranks:
            tensors[f"{name}.weight_down_q"] = (torch.int8, (self.rank, self.k))
            tensors[f"{name}.weight_down_scale"] = (torch.float32, (self.rank,))
            tensors[f"{name}.weight_up_q"] = (torch.int8, (self.n // len(self.ranks) * self.rank,))
            tensors[f"{name}.weight_up_scale"] = (torch.float32, (self.n,))
        else:
            tensors[f"{name}.weight_scale"] = (torch.float32, (self.n,))
            tensors[f"{name}.weight_q"] = (torch.int8, (self.n, self.k))
        if self.pattern is not None:
            grid = grid_of(self.pattern, self.n, self.k)
            tensors[f"{name}.weight_mask"] = (torch.uint8, (grid.mask_bytes,))
            tensors[f"{name}.weight_q"] = (torch.int8, (self.kept, grid.area))
        if self.smoothed:
            tensors[f"{name}.input_scale"] = (torch.float32, (self.k,))
        tensors[f"{name}.bias"] = (torch.float32, (self.n,))
        return tensors

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        data = {"smoothed": self.smoothed, "pattern": self.pattern, "kept": self.kept}
        return {**data, "ranks": list(self.ranks)} if self.ranks else data


def product_extents(hidden: int, attention: int, ffn: int) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the four products; `attention` is heads * head_dim."""
    return {
        "qkv": (3 * attention, hidden),
        "out": (hidden, attention),
        "up": (ffn, hidden),
        "down": (hidden, ffn),
    }


def parse_product(name: str, config: Any, n: int, k: int) -> Product:
    """From plain data; raises ValueError for a key or a value that is not as `plain` gives it."""
    if not isinstance(config, Mapping) or set(config) - {"ranks"} != set(_KEYS):
        raise ValueError(f"{name}: expected exactly {', '.join(_KEYS)} and perhaps ranks, got {config!r}")
    smoothed, pattern, kept = (config[key] for key in _KEYS)
    if type(smoothed) is not bool:
        raise ValueError(f"{name}: smoothed: expected true or false, got {smoothed!r}")
    most = 0 if pattern is None else grid_of(pattern, n, k).blocks
    if type(kept) is not int or not 0 <= kept <= most:
        raise ValueError(f"{name}: kept: expected an integer in [0, {most}], got {kept!r}")
    ranks = _checked_ranks(name, config["ranks"], n, k, pattern) if "ranks" in config else ()
    return Product(n, k, smoothed, pattern, kept, ranks)


def _checked_ranks(name: str, ranks: Any, n: int, k: int, pattern: object) -> tuple[int, ...]:
    count = 3 if name == "qkv" else 1
    most = min(n // count, k)
    if not isinstance(ranks, list | tuple) or len(ranks) != count:
        raise ValueError(f"{name}: ranks: expected {count} of them, got {ranks!r}")
    for rank in ranks:
        if type(rank) is not int or not 1 <= rank <= most:
            raise ValueError(f"{name}: ranks: expected integers in [1, {most}], got {ranks!r}")
    if pattern is not None:
        raise ValueError(f"{name}: expected no pattern beside ranks, got {pattern!r}")
    if k > MAX_IN_FEATURES or sum(ranks) > min(n, k):
        raise ValueError(
            f"{name}: ranks: expected a sum of at most {min(n, k)} and {MAX_IN_FEATURES} inputs at most, got "
            f"{ranks!r} and {k} inputs"
        )
    return tuple(ranks)

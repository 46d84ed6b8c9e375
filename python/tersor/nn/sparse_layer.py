"""What the sparse layers share: their pattern, and how many blocks of their weight are not 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tersor.nn.float_linear import weight_matrix
from tersor.nn.packed_layer import Expected
from tersor.nn.packed_linear import PackedLinear
from tersor.nn.sparse_weight import Grid, count_kept, find_pattern, grid_of


class SparseLayer(PackedLinear):
    """A linear layer whose canonical weight is a mask of blocks and the values of those that are not 0."""

    pattern: str
    _kept: int | None

    def _start_sparse(self, pattern: str, kept: int) -> None:
        self.pattern = pattern
        self._kept = kept
        if type(kept) is not int or not 0 <= kept <= self.grid.blocks:
            raise ValueError(f"kept: expected an integer in [0, {self.grid.blocks}], got {kept!r}")

    @property
    def grid(self) -> Grid:
        """The blocks of the weight."""
        return grid_of(self.pattern, self.out_features, self.in_features)

    @property
    def kept(self) -> int:
        """The number of blocks that are not 0."""
        if self._kept is None:
            packed = self.packed
            weight = self._dequantize(packed, self.out_features, self.in_features, torch.float32)
            self._kept = count_kept(weight, self.grid)
        return self._kept

    @property
    def density(self) -> float:
        """The part of the blocks that is not 0."""
        return self.kept / self.grid.blocks

    def config(self) -> dict[str, Any]:
        """What from_config needs, JSON-able."""
        return {**super().config(), "pattern": self.pattern, "kept": self.kept}

    @classmethod
    def _pattern_for(cls, module: nn.Module, pattern: str | None) -> str:
        if pattern is not None or cls.reason_against(module) is not None:
            return pattern or "unstructured"  # _convert refuses the module
        return find_pattern(weight_matrix(module))

    @staticmethod
    def _expected_blocks(key: str, dtype: torch.dtype, config: Mapping[str, Any]) -> Expected:
        grid = grid_of(config["pattern"], config["out_features"], config["in_features"])
        return {"weight_mask": (torch.uint8, (grid.mask_bytes,)), key: (dtype, (config["kept"], grid.area))}

    def _packed_from(self, given: Mapping[str, Any], expected: Expected) -> Tensor:
        # A state dict may keep more or fewer blocks than the layer has now.
        for key, (dtype, shape) in expected.items():
            blocks = given.get(key)
            if len(shape) == 2 and isinstance(blocks, Tensor) and blocks.dim() == 2:
                expected = {**expected, key: (dtype, (blocks.shape[0], shape[1]))}
        return super()._packed_from(given, expected)

    def _take_packed(self, packed: Tensor) -> None:
        if packed.numel():
            self._kept = None  # counted when it is asked for
        super()._take_packed(packed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = self.kept  # the packed bytes may not survive
        super()._apply(fn, recurse)
        self._kept = kept
        return self

    def extra_repr(self) -> str:
        """Adds the pattern and what is kept."""
        return f"{super().extra_repr()}, pattern={self.pattern}, density={self.density:.3g}"

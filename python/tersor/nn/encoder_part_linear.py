"""The linear layers inside an encoder block, of full and of low rank: parts of its products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tersor.factorize.factored_linear import FactoredLinear
from tersor.nn.encoder_packed import part_of

if TYPE_CHECKING:
    from tersor.nn.encoder_block import EncoderBlock


class Place(NamedTuple):
    """Which part of a product a layer stands for: the queries, the keys, the values, or all of it."""

    product: str
    number: int
    parts: int


class Part(nn.Module):
    """What reads its tensors from the block that it belongs to."""

    def __init__(self, block: EncoderBlock) -> None:
        nn.Module.__init__(self)
        self.__dict__["_tersor_block"] = block  # not a submodule

    @property
    def _block(self) -> EncoderBlock:
        block: EncoderBlock = self.__dict__["_tersor_block"]
        return block

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the block takes everything."""


class _PartOfProduct(Part):
    """What stands for some rows of one product."""

    def __init__(self, block: EncoderBlock, place: Place, has_bias: bool) -> None:
        super().__init__(block)
        rows, self.in_features = block.extents[place.product]
        self.out_features = rows // place.parts
        self._tersor_place, self._tersor_bias = place, has_bias

    def _rows(self, name: str, width: int, dtype: torch.dtype) -> Tensor:
        """The rows of this part, of a tensor with as many rows as the product has outputs."""
        first, whole = self._tersor_place.number * self.out_features, self._tersor_place.parts * self.out_features
        return part_of(self._block.packed, name, (whole, width), dtype)[first : first + self.out_features]

    def _read_bias(self, dtype: torch.dtype) -> Tensor | None:
        if not self._tersor_bias:
            return None
        place = self._tersor_place
        shape = (1, place.parts * self.out_features)
        bias = part_of(self._block.packed, f"{place.product}.bias", shape, dtype)[0]
        return bias[place.number * self.out_features :][: self.out_features]

    @property
    def bias(self) -> Tensor | None:
        """The bias [out_features], or None as in the float block."""
        return self._read_bias(self._block.dtype)


class PartLinear(_PartOfProduct, nn.Linear):  # type: ignore[misc]
    """An nn.Linear of the float block, with the dequantised weight."""

    def __init__(self, block: EncoderBlock, place: Place, layer: nn.Module) -> None:
        super().__init__(block, place, layer.bias is not None)
        own = type(layer) if isinstance(layer, nn.Linear) else nn.Linear
        self._tersor_class = getattr(layer, "_tersor_class", own)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantised weight [out_features, in_features], computed when it is read."""
        return self._rows(self._tersor_place.product, self.in_features, self._block.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features], in the dtype of the input."""
        weight = self._rows(self._tersor_place.product, self.in_features, input.dtype)
        return F.linear(input, weight, self._read_bias(input.dtype))


class PartFactored(_PartOfProduct, FactoredLinear):  # type: ignore[misc]
    """A FactoredLinear of the float block, with the dequantised factors."""

    def __init__(self, block: EncoderBlock, place: Place, layer: nn.Module) -> None:
        super().__init__(block, place, layer.bias is not None)
        ranks = block._settings.products[place.product].ranks
        self.rank, self._tersor_rank = ranks[place.number], sum(ranks)
        self._tersor_column = sum(ranks[: place.number])

    def _read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        name, columns = self._tersor_place.product, slice(self._tersor_column, self._tersor_column + self.rank)
        shape = (self._tersor_rank, self.in_features)
        down = part_of(self._block.packed, f"{name}.weight_down", shape, dtype)[columns]
        return down, self._rows(f"{name}.weight_up", self._tersor_rank, dtype)[:, columns]

    @property
    def weight_down(self) -> Tensor:  # type: ignore[override]
        """The first factor [rank, in_features], a copy."""
        return self._read(self._block.dtype)[0]

    @property
    def weight_up(self) -> Tensor:  # type: ignore[override]
        """The second factor [out_features, rank], a copy."""
        return self._read(self._block.dtype)[1]

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features], in the dtype of the input."""
        down, up = self._read(input.dtype)
        return F.linear(F.linear(input, down), up, self._read_bias(input.dtype))

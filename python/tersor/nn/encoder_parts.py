"""The modules inside an encoder block: the tree of the float block, whose tensors are read from the packed bytes.

They keep names, hooks and attributes where a model or its user looks for them, and they compute in float what the fused
op has no form for. They hold no tensors of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tersor.encoder.family import Anatomy
from tersor.factorize.factored_linear import FactoredLinear
from tersor.nn.encoder_packed import part_of
from tersor.nn.encoder_tree import Make

if TYPE_CHECKING:
    from tersor.nn.encoder_block import EncoderBlock


class Place(NamedTuple):
    """Which part of a product a layer stands for: the queries, the keys, the values, or all of it."""

    product: str
    number: int
    parts: int


class _Part(nn.Module):
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


class _PartOfProduct(_Part):
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


class PartNorm(_Part, nn.LayerNorm):
    """An nn.LayerNorm of the float block."""

    def __init__(self, block: EncoderBlock, name: str, eps: float) -> None:
        _Part.__init__(self, block)
        self._tersor_norm, self.eps, self.elementwise_affine = name, eps, True
        self.normalized_shape = (block.extents["out"][0],)

    def _read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        block, shape = self._block, (1, self.normalized_shape[0])
        weight, bias = (
            part_of(block.packed, f"{self._tersor_norm}.{key}", shape, dtype)[0] for key in ("weight", "bias")
        )
        return weight, bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight, a copy."""
        return self._read(self._block.dtype)[0]

    @property
    def bias(self) -> Tensor:  # type: ignore[override]
        """The bias, a copy."""
        return self._read(self._block.dtype)[1]

    def forward(self, input: Tensor) -> Tensor:
        """Normalises the last dimension, in the dtype of the input."""
        return F.layer_norm(input, self.normalized_shape, *self._read(input.dtype), self.eps)


class PartAttention(_Part, nn.MultiheadAttention):
    """The nn.MultiheadAttention of the float block; out_proj is a PartLinear."""

    def __init__(self, block: EncoderBlock, has_bias: bool) -> None:
        _Part.__init__(self, block)
        self._tersor_bias = has_bias
        for key in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "bias_k", "bias_v"):
            self.register_parameter(key, None)

    def _read(self) -> tuple[Tensor, Tensor]:
        block = self._block
        rows, columns = block.extents["qkv"]
        weight = part_of(block.packed, "qkv", (rows, columns), block.dtype)
        return weight, part_of(block.packed, "qkv.bias", (1, rows), block.dtype)[0]

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The dequantised weight [3 * embed_dim, embed_dim]."""
        return self._read()[0]

    @property
    def in_proj_bias(self) -> Tensor | None:  # type: ignore[override]
        """The bias [3 * embed_dim], or None as in the float block."""
        return self._read()[1] if self._tersor_bias else None


def make_parts(block: EncoderBlock, anatomy: Anatomy) -> Make:
    """For `rebuilt`: the part that stands for a module of the float block, None for what has no tensors."""
    places = {path: Place("qkv", index, len(anatomy.qkv)) for index, path in enumerate(anatomy.qkv)}
    places |= {getattr(anatomy, product): Place(product, 0, 1) for product in ("out", "up", "down")}
    norms = dict(zip(anatomy.norms, ("norm1", "norm2"), strict=True))

    def make(path: str, module: Any) -> nn.Module | None:
        if path in norms:
            return PartNorm(block, norms[path], module.eps)
        if path in anatomy.qkv and len(anatomy.qkv) == 1:
            return PartAttention(block, module.in_proj_bias is not None)
        if path in places:
            place = places[path]
            factored = isinstance(module, FactoredLinear) and block._settings.products[place.product].ranks
            return (PartFactored if factored else PartLinear)(block, place, module)
        return None

    return make


def make_floats(path: str, module: nn.Module) -> nn.Module | None:
    """For `rebuilt`: the float layer with the values of a part, None for what is none."""
    made: nn.Module
    names: tuple[str, ...]
    if isinstance(module, PartLinear):
        made = module._tersor_class(module.in_features, module.out_features, module._tersor_bias, device="meta")
        names = ("weight", "bias")
    elif isinstance(module, PartFactored):
        made = FactoredLinear(module.in_features, module.out_features, module.rank, module._tersor_bias, device="meta")
        names = ("weight_down", "weight_up", "bias")
    elif isinstance(module, PartNorm):
        made = nn.LayerNorm(module.normalized_shape, module.eps, device="meta")
        names = ("weight", "bias")
    elif isinstance(module, PartAttention):
        made = nn.MultiheadAttention.__new__(nn.MultiheadAttention)
        nn.Module.__init__(made)
        made._parameters.update(module._parameters)
        names = ("in_proj_weight", "in_proj_bias")
    else:
        return None
    for name in names:
        value = getattr(module, name)
        made.register_parameter(name, None if value is None else nn.Parameter(value.clone()))
    return made

"""The modules inside an encoder block: the tree of the float block, whose tensors are read from the packed bytes.

They keep names, hooks and attributes where a model or its user looks for them, and they compute in float what the fused
op has no form for. They hold no tensors of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tersor.encoder.family import Anatomy
from tersor.factorize.factored_linear import FactoredLinear
from tersor.nn.encoder_packed import part_of
from tersor.nn.encoder_part_linear import Part, PartFactored, PartLinear, Place
from tersor.nn.encoder_tree import Make

if TYPE_CHECKING:
    from tersor.nn.encoder_block import EncoderBlock


class PartNorm(Part, nn.LayerNorm):
    """An nn.LayerNorm of the float block."""

    def __init__(self, block: EncoderBlock, name: str, eps: float) -> None:
        Part.__init__(self, block)
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


class PartAttention(Part, nn.MultiheadAttention):
    """The nn.MultiheadAttention of the float block; out_proj is a PartLinear."""

    def __init__(self, block: EncoderBlock, has_bias: bool) -> None:
        Part.__init__(self, block)
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

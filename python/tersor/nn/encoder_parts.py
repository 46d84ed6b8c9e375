"""The modules inside an encoder block: the tree of the float block, whose tensors are read from the packed bytes.

They keep names, hooks and attributes where a model or its user looks for them, and they compute in float what the fused
op has no form for. They hold no tensors of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tersor.encoder.family import Anatomy
from tersor.modules import HOOKS
from tersor.nn.encoder_packed import part_of

if TYPE_CHECKING:
    from tersor.nn.encoder_block import EncoderBlock

OWN = frozenset(nn.Module().__dict__)
"""What every module has in its __dict__."""

Make = Callable[[str, nn.Module], "nn.Module | None"]
Duplicate = Callable[[Any], Any]


class Place(NamedTuple):
    """Which rows of which product a layer stands for."""

    product: str
    first: int
    rows: int


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


class PartLinear(_Part, nn.Linear):
    """An nn.Linear of the float block, with the dequantised weight."""

    def __init__(self, block: EncoderBlock, place: Place, in_features: int, layer: nn.Linear) -> None:
        _Part.__init__(self, block)
        has_bias = layer.bias is not None
        self._tersor_class = getattr(layer, "_tersor_class", type(layer))
        self.in_features, self.out_features = in_features, place.rows
        self._tersor_place, self._tersor_bias = place, has_bias

    def _read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        block, (product, first, rows) = self._block, self._tersor_place
        whole = block.extents[product]
        weight = part_of(block.packed, product, whole, dtype)[first : first + rows]
        if not self._tersor_bias:
            return weight, None
        return weight, part_of(block.packed, f"{product}.bias", (1, whole[0]), dtype)[0, first : first + rows]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantised weight [out_features, in_features], computed when it is read."""
        return self._read(self._block.dtype)[0]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The bias [out_features], or None as in the float block."""
        return self._read(self._block.dtype)[1]

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features], in the dtype of the input."""
        return F.linear(input, *self._read(input.dtype))


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
    attention = block.extents["out"][1]
    places = {path: Place("qkv", index * attention, attention) for index, path in enumerate(anatomy.qkv)}
    for product in ("out", "up", "down"):
        places[getattr(anatomy, product)] = Place(product, 0, block.extents[product][0])
    norms = dict(zip(anatomy.norms, ("norm1", "norm2"), strict=True))

    def make(path: str, module: Any) -> nn.Module | None:
        if path in norms:
            return PartNorm(block, norms[path], module.eps)
        if path in anatomy.qkv and len(anatomy.qkv) == 1:
            return PartAttention(block, module.in_proj_bias is not None)
        if path in places:
            place = places[path]
            return PartLinear(block, place, block.extents[place.product][1], module)
        return None

    return make


def make_floats(path: str, module: nn.Module) -> nn.Module | None:
    """For `rebuilt`: the float layer with the values of a part, None for what is none."""
    made: nn.Module
    if isinstance(module, PartLinear):
        made = module._tersor_class(module.in_features, module.out_features, module._tersor_bias, device="meta")
        names = ("weight", "bias")
    elif isinstance(module, PartNorm):
        made, names = nn.LayerNorm(module.normalized_shape, module.eps, device="meta"), ("weight", "bias")
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


def rebuilt(module: nn.Module, make: Make, duplicate: Duplicate, hooks: bool, path: str = "") -> nn.Module:
    """A copy of a tree of modules, in which `make(path, module)` may put something else in a module's place.

    `duplicate` is applied to attributes and hook tables; without `hooks` the copies have none.
    """
    made = make(path, module)
    if made is None:
        made = type(module).__new__(type(module))
        nn.Module.__init__(made)
        made._parameters.update(module._parameters)
        made._buffers.update(module._buffers)
    copy_attributes(module, made, duplicate)
    if hooks:
        for key in HOOKS:
            made.__dict__[key] = duplicate(module.__dict__[key])
    for key, child in module._modules.items():
        below = f"{path}.{key}" if path else key
        made._modules[key] = None if child is None else rebuilt(child, make, duplicate, hooks, below)
    return made


def copy_attributes(old: nn.Module, new: nn.Module, duplicate: Duplicate) -> None:
    """Give `new` the attributes of `old` that it does not have, and its training flag."""
    new.training = old.training
    for key, value in old.__dict__.items():
        if key not in OWN and key not in new.__dict__ and not key.startswith("_tersor"):
            new.__dict__[key] = duplicate(value)

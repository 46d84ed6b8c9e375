"""The integers of one product of an encoder block, out of the layers that it is made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tersor.factorize.factored_linear import FactoredLinear
from tersor.nn.encoder_weight import spread
from tersor.nn.int8_linear import Int8Linear
from tersor.nn.lowrank_int8_linear import LowRankInt8Linear
from tersor.nn.sparse_int8_linear import SparseInt8Linear
from tersor.nn.sparse_weight import expand
from tersor.quantize import dequantize_s8, quantize_s8


class Integers(NamedTuple):
    """The weight of one product, and its bias.

    Attributes:
        q, scale: int8 [n, k] times float32 [n] (times input_scale [k]); of low rank: the second factor, [n, rank].
        input_scale: float32 [k], or None: not smoothed.
        bias: float32 [n].
        pattern: how its zeros lie, or None.
        down: the first factor of low rank, int8 [rank, k] and float32 [rank], or None.
        ranks: of the layers that it was made of, where it is of low rank.
    """

    q: Tensor
    scale: Tensor
    input_scale: Tensor | None
    bias: Tensor
    pattern: str | None
    down: tuple[Tensor, Tensor] | None = None
    ranks: tuple[int, ...] = ()

    @property
    def inputs(self) -> int:
        """k."""
        return (self.q if self.down is None else self.down[0]).shape[1]


def of_float(layer: nn.Module, input_scale: Tensor | None) -> Integers:
    """A float nn.Linear or FactoredLinear, rounded; raises ValueError for a weight that holds NaN or infinity."""
    assert isinstance(layer, nn.Linear | FactoredLinear)
    bias = torch.zeros(layer.out_features) if layer.bias is None else (layer.bias.detach() + 0).float()
    if not isinstance(layer, FactoredLinear):
        return Integers(*quantize_s8(layer.weight, input_scale), input_scale, bias, None)
    down, up = quantize_s8(layer.weight_down, input_scale), quantize_s8(layer.weight_up)
    return Integers(*up, input_scale, bias, None, down, (layer.rank,))


def of_converted(path: str, layer: nn.Module | None) -> Integers:
    """What a converted layer holds; raises ValueError where that is not int8 with ranges of its own."""
    if type(layer) not in (Int8Linear, SparseInt8Linear, LowRankInt8Linear):
        raise ValueError(f"its {path} becomes a {type(layer).__name__}, not an int8 layer")
    assert isinstance(layer, Int8Linear)
    if layer.x_scale:
        raise ValueError(f"the input of its {path} has a static range; a block measures its own")
    tensors = layer.canonical_tensors()
    bias = tensors["bias"].float() if "bias" in tensors else torch.zeros(layer.out_features)
    input_scale = tensors.get("input_scale")
    if isinstance(layer, LowRankInt8Linear):
        down = (tensors["weight_down_q"], tensors["weight_down_scale"])
        up = (tensors["weight_up_q"], tensors["weight_up_scale"])
        return Integers(*up, input_scale, bias, None, down, (layer.rank,))
    q, pattern = tensors["weight_q"], None
    if isinstance(layer, SparseInt8Linear):
        q, pattern = expand(tensors["weight_mask"], q, layer.grid), layer.pattern
    return Integers(q, tensors["weight_scale"], input_scale, bias, pattern)


def joined(parts: list[Integers]) -> Integers:
    """One product of layers with the same input: of low rank where all are and that is less work, else dense.

    Raises:
        ValueError: they are smoothed in different ways.
    """
    if len(parts) == 1:
        return parts[0]
    input_scale = _shared_scale(parts)
    outputs, inputs = sum(len(part.q) for part in parts), parts[0].inputs
    rank = sum(sum(part.ranks) for part in parts)
    down = None
    if all(part.ranks for part in parts) and rank * (outputs + inputs) < outputs * inputs:
        q = spread(torch.cat([part.q.flatten() for part in parts]), [part.ranks[0] for part in parts])
        factors = [part.down for part in parts if part.down is not None]
        down = (torch.cat([factor[0] for factor in factors]), torch.cat([factor[1] for factor in factors]))
    else:
        parts = [_multiplied_out(part, input_scale) if part.ranks else part for part in parts]
        q = torch.cat([part.q for part in parts])
    patterns = {part.pattern for part in parts}
    return Integers(
        q,
        torch.cat([part.scale for part in parts]),
        input_scale,
        torch.cat([part.bias for part in parts]),
        patterns.pop() if len(patterns) == 1 else None,
        down,
        () if down is None else tuple(part.ranks[0] for part in parts),
    )


def _shared_scale(parts: list[Integers]) -> Tensor | None:
    """That of the dense ones; those of low rank are not smoothed where they stand beside dense ones."""
    scales = [part.input_scale for part in parts if not part.ranks] or [part.input_scale for part in parts]
    for other in scales[1:]:
        one = scales[0]
        if (one is None) != (other is None) or (one is not None and other is not None and not torch.equal(one, other)):
            raise ValueError("its queries, keys and values are smoothed in different ways")
    return scales[0]


def _multiplied_out(part: Integers, input_scale: Tensor | None) -> Integers:
    assert part.down is not None
    weight = dequantize_s8(part.q, part.scale) @ dequantize_s8(*part.down, part.input_scale)
    return Integers(*quantize_s8(weight, input_scale), input_scale, part.bias, None)

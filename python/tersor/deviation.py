"""How far a changed model, or its layers, are from the float ones on some inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor.observe import floats, run, watching_calls


@dataclass
class _Sums:
    difference: float = 0.0
    reference: float = 0.0

    def add(self, value: Tensor, reference: Tensor) -> None:
        self.difference += _square(value.to(torch.float32) - reference.to(torch.float32))
        self.reference += _square(reference)

    def relative(self) -> float:
        if self.difference == 0:
            return 0.0
        ratio = (self.difference / self.reference) ** 0.5 if self.reference else math.inf
        return math.inf if math.isnan(ratio) else float(ratio)


def _square(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.to(torch.float32), dtype=torch.float64)) ** 2


def layer_errors(model: nn.Module, pairs: dict[nn.Module, nn.Module], inputs: Any) -> tuple[dict[int, float], Any]:
    """The error each replacement makes on what its float layer is given, ``|y - y_float| / |y_float|`` (2-norms).

    Args:
        model: the float model.
        pairs: float layer -> its replacement.

    Returns:
        The errors by the id of the float layer, and the output of the model.
    """
    sums: dict[int, _Sums] = {}

    def compare(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        own, expected = floats(pairs[layer].forward(*args, **kwargs)), floats(output)
        for value, reference in zip(own, expected, strict=False):
            sums.setdefault(id(layer), _Sums()).add(*_without_padding(value, reference, [pairs[layer]]))
            break  # what follows the first tensor is no output of a layer

    with watching_calls(pairs, compare):
        output = run(model, inputs, "example_inputs")
    return {key: value.relative() for key, value in sums.items()}, output


def _without_padding(value: Tensor, reference: Tensor, layers: Iterable[nn.Module]) -> tuple[Tensor, Tensor]:
    """Both without the rows that are 0 in `value` because a layer gives 0 for padding, which is no error."""
    padded = any(hasattr(layer, "zeros_padding") for layer in layers)
    if not padded or value.dim() < 2 or value.shape != reference.shape:
        return value, reference
    real = (value != 0).any(-1)
    return value[real], reference[real]


def output_error(output: Any, reference: Any, layers: Iterable[nn.Module] = ()) -> tuple[float, float] | None:
    """Relative error (2-norms) and cosine of everything floating in two outputs of the same structure; else None.

    `layers`: those of the model of `output`; rows of padding don't count where one of them makes them 0.
    """
    layers = list(layers)
    ours, theirs = list(floats(output)), list(floats(reference))
    if not ours or [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        return None
    sums, dot, own = _Sums(), 0.0, 0.0
    for value, expected in (_without_padding(*pair, layers) for pair in zip(ours, theirs, strict=True)):
        sums.add(value, expected)
        dot += float((value.to(torch.float64) * expected.to(torch.float64)).sum())
        own += _square(value)
    norm = (own * sums.reference) ** 0.5
    return sums.relative(), dot / norm if norm else 1.0 if sums.difference == 0 else 0.0

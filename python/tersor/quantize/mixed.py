"""Bits of their own for every layer: how much each layer suffers from few bits, and the best choice within a size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from tersor import deviation, observe
from tersor.errors import SwapError
from tersor.modules import find_candidates
from tersor.nn.float_linear import weight_matrix
from tersor.progress import track
from tersor.quantize.codebooks import decode, make_codebook
from tersor.quantize.corrections import LayerProblem
from tersor.quantize.moments import input_moments, portions
from tersor.selection import matches

Measure = Literal["output", "hessian"]
_UNITS = 8192


@dataclass(frozen=True)
class BitSensitivity:
    """What few bits in one layer do.

    Attributes:
        errors: layer -> bits -> squared relative error.
        weights: layer -> number of weights.
        measure: what the error is of.
    """

    errors: dict[str, dict[int, float]]
    weights: dict[str, int]
    measure: Measure

    def worst(self) -> list[str]:
        """The layers, the one that suffers most from the fewest bits first."""
        return sorted(self.errors, key=lambda name: -self.errors[name][min(self.errors[name])])

    def propose(self, average_bits: float) -> dict[str, int]:
        """Bits for every layer with the least sum of errors, see :func:`choose_bits`."""
        return choose_bits(self.errors, self.weights, average_bits)


def choose_bits(
    errors: Mapping[str, Mapping[int, float]], weights: Mapping[str, int], average_bits: float
) -> dict[str, int]:
    """The bits of each layer for which the sum of errors is smallest and the weights take no more than the average.

    Dynamic programming over sizes: exact where they have a large common divisor, as in most models, else in 8192 parts
    of the budget, rounded up.

    Raises:
        ValueError: even the fewest bits of every layer are more than the average.
    """
    names = list(errors)
    least = {name: min(errors[name]) for name in names}
    spare = average_bits * sum(weights[name] for name in names) - sum(weights[name] * least[name] for name in names)
    if spare < 0:
        raise ValueError(f"average_bits = {average_bits:g} is less than the fewest bits of every layer")
    unit = max(math.gcd(*(weights[name] for name in names)), spare / _UNITS, 1e-9)
    room = int(spare / unit + 1e-9)
    sizes = {
        name: {bits: math.ceil(weights[name] * (bits - least[name]) / unit - 1e-9) for bits in errors[name]}
        for name in names
    }
    cost, taken = np.zeros(room + 1), []
    for name in names:
        best, choice = np.full(room + 1, np.inf), np.zeros(room + 1, dtype=np.int64)
        for bits, error in sorted(errors[name].items()):
            size = sizes[name][bits]
            if size <= room:
                total = np.concatenate([np.full(size, np.inf), cost[: room + 1 - size] + error])
                better = total < best
                best[better], choice[better] = total[better], bits
        cost = best
        taken.append(choice)
    left, chosen = room, {}
    for name, choice in zip(reversed(names), reversed(taken), strict=True):
        chosen[name] = int(choice[left])
        left -= sizes[name][chosen[name]]
    return {name: chosen[name] for name in names}


def bit_sensitivity(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    bits: Sequence[int] = (2, 3, 4, 5, 6, 8),
    codebook: str = "linear",
    group_size: int | None = None,
    measure: Measure = "hessian",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: bool = True,
) -> BitSensitivity:
    """Round the weights of one linear layer after the other and measure the error. The model is left as it was.

    Args:
        batches: inputs of the model, run at least once.
        measure: ``"hessian"``: of the layer's own output, ``tr(D H D^T) / tr(W H W^T)``, H the second moments of its
            inputs, which takes one pass over the data; ``"output"``: of the model's output, which takes one pass for
            every layer and number of bits.
        include, exclude: shell wildcards on names.

    Raises:
        ValueError: an unknown measure, or no linear layer is selected.
        SwapError: the model failed on a batch, or no batch reached a layer.
    """
    if measure not in get_args(Measure):
        raise ValueError(f"measure: expected one of {', '.join(get_args(Measure))}, got {measure!r}")
    layers = {
        one.name: one.module
        for one in find_candidates(model, untie=True)
        if one.refusal is None
        and matches(one.names, exclude) is None
        and (not include or matches(one.names, include) is not None)
    }
    if not layers:
        raise ValueError("no linear layer is selected")
    scan = _by_output if measure == "output" else _by_hessian
    errors = scan(model, layers, batches, sorted(bits), codebook, group_size, progress)
    return BitSensitivity(errors, {name: weight_matrix(layers[name]).numel() for name in errors}, measure)


Errors = dict[str, dict[int, float]]


def _by_hessian(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    bits: Sequence[int],
    codebook: str,
    group_size: int | None,
    progress: bool,
) -> Errors:
    book, errors = make_codebook(codebook), Errors()
    for names in portions({name: weight_matrix(layer).shape[1] for name, layer in layers.items()}):
        found = input_moments(model, {name: layers[name] for name in names}, batches)
        for name in track(list(found), "rounding layers", shown=progress):
            weight = weight_matrix(layers[name]).to(torch.float32)
            problems = {count: LayerProblem(weight, found[name], book, count, group_size) for count in bits}
            errors[name] = {count: one.error(one.fit()) ** 2 for count, one in problems.items()}
    return errors


def _by_output(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    bits: Sequence[int],
    codebook: str,
    group_size: int | None,
    progress: bool,
) -> Errors:
    book, errors = make_codebook(codebook), Errors()
    batches = list(batches)
    expected = [observe.run(model, batch, f"calibration batch {index}") for index, batch in enumerate(batches)]
    for name in track(list(layers), "rounding layers", shown=progress):
        errors[name] = {}
        weight = weight_matrix(layers[name])
        for count in bits:
            rounded = decode(book.fit(weight, count, group_size))
            with _instead(weight, rounded):
                total = [_squared_error(model, batch, wanted) for batch, wanted in zip(batches, expected, strict=True)]
            errors[name][count] = sum(total) / len(total)
    return errors


def _squared_error(model: nn.Module, batch: Any, expected: Any) -> float:
    error = deviation.output_error(observe.run(model, batch, "calibration data"), expected)
    if error is None:
        raise SwapError("the model returned no floats to compare; use measure='hessian'")
    return error[0] ** 2


class _instead:  # noqa: N801  (a context manager)
    """Other values in a weight, for a while."""

    def __init__(self, weight: torch.Tensor, values: torch.Tensor) -> None:
        self.weight, self.values, self.kept = weight, values, weight.clone()

    def __enter__(self) -> None:
        self.weight.copy_(self.values)

    def __exit__(self, *_: object) -> None:
        self.weight.copy_(self.kept)

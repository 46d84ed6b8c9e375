"""What a correction is, and the list of all of them. A new one is one file here and one import line in the package.

A correction makes the error of one layer's output smaller than rounding to the nearest code does. Which weights,
bias and input scale it found is kept only where that error is smaller.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from tersor.quantize.codebooks import CodeBook, Codes, decode
from tersor.quantize.moments import InputMoments
from tersor.quantize.simulation import fake_quantize

Stage = Literal["inputs", "ranges", "weights", "bias"]
STAGES: tuple[Stage, ...] = ("inputs", "ranges", "weights", "bias")


@dataclass(frozen=True)
class Solution:
    """How a layer is quantised: ``y = (x * input_scale) decode(codes)^T + bias``.

    Attributes:
        codes: of the weight divided by the input scale.
        input_scale: float32 ``[in]``, or None.
        bias: what is added to the bias of the layer, float32 ``[out]``, or None.
        x_range: scale and zero point of static activations, or None: those of the problem.
    """

    codes: Codes
    input_scale: Tensor | None = None
    bias: Tensor | None = None
    x_range: tuple[float, int] | None = None


@dataclass(frozen=True)
class LayerProblem:
    """A linear layer to be quantised.

    Attributes:
        weight: float32 ``[out, in]``.
        moments: of its inputs.
        book, bits, group_size: what its weight becomes, see CodeBook.fit.
        x_range: scale and zero point of static activations for an input scale; (0, 0) means ranges per row.
    """

    weight: Tensor
    moments: InputMoments
    book: CodeBook
    bits: int
    group_size: int | None = None
    x_range: Callable[[Tensor | None], tuple[float, int]] = lambda _: (0.0, 0)

    def scaled(self, input_scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """The weight that is quantised, and the second moments of what it is multiplied with."""
        if input_scale is None:
            return self.weight, self.moments.gram
        return self.weight / input_scale, self.moments.gram * input_scale[:, None] * input_scale

    def fit(self, input_scale: Tensor | None = None) -> Solution:
        """Every weight to the nearest code; the scales weigh inputs by their mean square."""
        weight, gram = self.scaled(input_scale)
        codes = self.book.fit(weight, self.bits, self.group_size, gram.diagonal().clamp_min(0))
        return Solution(codes, input_scale)

    def range_of(self, solution: Solution) -> tuple[float, int]:
        """Scale and zero point of static activations; (0, 0) means ranges per row."""
        return self.x_range(solution.input_scale) if solution.x_range is None else solution.x_range

    def error(self, solution: Solution) -> float:
        """The error of the output relative to the output without bias (2-norms, over all rows that were seen).

        The part of weights and bias is exact; that of activations is measured on the sample of rows.
        """
        weight, gram = self.scaled(solution.input_scale)
        total = weights_error(decode(solution.codes) - weight, gram) + self.inputs_error(solution)
        if solution.bias is not None:
            shift = self.mean_error(solution).double()
            total += float((solution.bias.double() * (solution.bias.double() + 2 * shift)).sum())
        reference = weights_error(self.weight, self.moments.gram)
        return float((max(total, 0.0) / reference) ** 0.5) if reference > 0 else 0.0

    def inputs_error(self, solution: Solution) -> float:
        """The part of activations: the mean squared error of the outputs, summed over them, on the sample of rows."""
        noise = self._noise(solution)
        return float((noise @ decode(solution.codes).t()).double().square().sum()) / max(len(noise), 1)

    def mean_error(self, solution: Solution) -> Tensor:
        """The mean over the inputs of the error of the output, float32 ``[out]``: of the weight, and of static ranges.

        The part of static ranges is that of the sample of rows.
        """
        fitted = decode(solution.codes)
        off = (fitted if solution.input_scale is None else fitted * solution.input_scale) - self.weight
        mean = off @ self.moments.mean
        if self.range_of(solution)[0] > 0 and len(self.moments.sample.rows):
            mean += fitted @ self._noise(solution).mean(0)
        return mean

    def _noise(self, solution: Solution) -> Tensor:
        """What quantising adds to the sample of rows, after they are scaled."""
        rows, scale = self.moments.sample.rows, solution.input_scale
        rows = rows if scale is None else rows * scale
        return fake_quantize(rows, *self.range_of(solution)) - rows


def weights_error(difference: Tensor, gram: Tensor) -> float:
    """``tr(D G D^T)``: the mean squared error of the outputs, summed over them, for a difference of weights."""
    return float(((difference @ gram) * difference).sum(dtype=torch.float64))


class Correction(abc.ABC):
    """Improves how one layer is quantised.

    Attributes:
        name: its name in the registry.
        stage: what it changes; ``"inputs"`` (the input scale) come before ``"weights"``, and ``"bias"`` is last.
    """

    name: ClassVar[str] = ""
    stage: ClassVar[Stage] = "weights"

    @abc.abstractmethod
    def apply(self, problem: LayerProblem, solution: Solution) -> Solution:
        """A solution that may be better than the given one."""


@dataclass(frozen=True)
class Solved:
    """What the corrections made of a layer.

    Attributes:
        solution: the best.
        plain: the error of its output without them.
        errors: correction -> the error after it; the smallest so far is kept.
    """

    solution: Solution
    plain: float
    errors: dict[str, float]

    @property
    def error(self) -> float:
        """The error of the solution."""
        return min([self.plain, *self.errors.values()])

    @property
    def helped(self) -> list[str]:
        """The corrections that were kept."""
        least, names = self.plain, []
        for name, error in self.errors.items():
            if error < least:
                least = error
                names.append(name)
        return names


def solve(problem: LayerProblem, corrections: Iterable[str], input_scale: Tensor | None = None) -> Solved:
    """Quantise a layer, from the nearest codes on through the corrections, in the order of their stages.

    Raises:
        ValueError: an unknown correction, a weight that holds NaN or infinity, or moments that can't be factorised.
    """
    found = sorted((make_correction(name) for name in corrections), key=lambda one: STAGES.index(one.stage))
    solution = problem.fit(input_scale)
    plain = least = problem.error(solution)
    errors: dict[str, float] = {}
    for correction in found:
        tried = correction.apply(problem, solution)
        errors[correction.name] = problem.error(tried)
        if errors[correction.name] < least:
            least, solution = errors[correction.name], tried
    return Solved(solution, plain, errors)


CORRECTIONS: dict[str, type[Correction]] = {}
"""Every known correction by its name."""

CorrectionT = TypeVar("CorrectionT", bound=type[Correction])


def register_correction(cls: CorrectionT) -> CorrectionT:
    """Class decorator that makes a correction known by its name.

    Raises:
        ValueError: no name, or it belongs to another class.
    """
    if not cls.name:
        raise ValueError(f"{cls.__qualname__} has no name")
    owner = CORRECTIONS.setdefault(cls.name, cls)
    if owner is not cls:
        raise ValueError(f"correction {cls.name!r} belongs to {owner.__module__}.{owner.__qualname__} already")
    return cls


def make_correction(name: str) -> Correction:
    """A correction by its name with its default settings.

    Raises:
        ValueError: an unknown name; the message lists what exists.
    """
    if name not in CORRECTIONS:
        raise ValueError(f"unknown correction {name!r}; known: {', '.join(sorted(CORRECTIONS))}")
    return CORRECTIONS[name]()

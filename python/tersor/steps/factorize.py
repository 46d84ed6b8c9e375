"""The step that turns layers into products of thinner ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from tersor.errors import RecipeError
from tersor.factorize.convolution import CONV_METHODS
from tersor.factorize.model import METHODS
from tersor.factorize.rank import ROUND_TO, RankRule
from tersor.recipe import Step, register_step

if TYPE_CHECKING:
    from tersor.pipeline import Run

_RULES = ("rank", "energy", "ratio", "error")
_MOST_SPEEDUP = 100


@register_step
@dataclasses.dataclass(frozen=True)
class Factorize(Step):
    """Turn linear layers, and where wanted convolutions and embeddings, into products of thinner ones.

    A linear layer is factorised where the fused kernel at its rank is measured faster than the dense layer on this
    host (not with ``force``); elsewhere it stays, and the report says which rank would pay. What decides on the rank is
    one of ``rank``, ``energy``, ``ratio``, ``error`` and ``speedup``; by default half of the parameters stay. Alone it
    gives LowRankLinear layers; before a Quantize, LowRankInt8Linear ones. docs/lowrank.md has the methods.

    Args:
        method: ``"svd"``: the weights change least; ``"asvd"``: the outputs on calibration data (else the example
            inputs) do.
        rank: the rank itself, or below 1 the part of the full rank.
        energy: the part of the squared singular values that stays at least.
        ratio: the part of the parameters that stays at most.
        error: the relative error of a layer's weight, or with ``"asvd"`` of its outputs, at most.
        speedup: the largest rank that is so many times as fast as the dense layer, measured.
        kernel: what the layers will run as, for the measurements: ``"float32"``, or ``"int8"`` before a Quantize.
        convolutions: ``"tucker2"``, ``"cp"`` or ``"spatial"``: 2-d convolutions become chains of convolutions;
            None leaves them.
        embeddings: embeddings become a smaller one and a linear layer.
        round_to: ranks are multiples of it; 8 at most in convolutions and embeddings.
    """

    name: ClassVar[str] = "factorize"

    method: Literal["svd", "asvd"] = dataclasses.field(default="svd", metadata={"choices": METHODS})
    rank: float | None = None
    energy: float | None = None
    ratio: float | None = None
    error: float | None = None
    speedup: float | None = None
    kernel: Literal["float32", "int8"] = dataclasses.field(default="float32", metadata={"choices": ("float32", "int8")})
    convolutions: str | None = dataclasses.field(default=None, metadata={"choices": (None, *CONV_METHODS)})
    embeddings: bool = False
    round_to: int = ROUND_TO

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in (*_RULES, "speedup") if getattr(self, name) is not None]
        if len(given) > 1:
            raise RecipeError(
                f"step 'factorize': give one of {', '.join((*_RULES, 'speedup'))}, got {' and '.join(given)}"
            )
        for name in given:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise RecipeError(f"step 'factorize': {name} = {value!r} is not a number")
            object.__setattr__(self, name, float(value))
        if self.speedup is not None and not 1 <= self.speedup <= _MOST_SPEEDUP:
            raise RecipeError(f"step 'factorize': speedup = {self.speedup!r} is not from 1 to {_MOST_SPEEDUP}")
        if type(self.embeddings) is not bool:
            raise RecipeError(f"step 'factorize': embeddings = {self.embeddings!r} is not true or false")
        try:
            self.rule  # noqa: B018 - checks the values
        except (ValueError, TypeError) as error:
            raise RecipeError(f"step 'factorize': {error}") from error

    @property
    def rule(self) -> RankRule:
        """What decides on ranks where they are not measured."""
        for name in _RULES:
            if (value := getattr(self, name)) is not None:
                return RankRule(name, value, self.round_to)  # type: ignore[arg-type]
        return RankRule(round_to=self.round_to)

    def uses(self) -> frozenset[str]:
        """Calibration data, for activation-aware SVD."""
        return frozenset({"calibration"} if self.method == "asvd" else ())

    def reason_against(self, before: Sequence[Step]) -> str | None:
        """Zeros would be lost."""
        if any(step.name == "prune" for step in before):
            return "the factors of a pruned weight have no zeros: put it before 'prune'"
        return super().reason_against(before)

    def apply(self, run: Run) -> None:
        """Factorise the selected layers.

        Raises:
            RecipeError: inputs that the method needs are missing.
            FactorizeError: no layer is selected.
            SwapError: the model failed on the inputs.
        """
        from tersor.factorizing import factorize_model, factorized_note

        run.notes.append(factorized_note(self, factorize_model(run, self)))

"""What a distillation loss is, and the list of all. A new one is one file here and one import in the package."""

from __future__ import annotations

import abc
import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from tersor.errors import DistillError

Layers = str | Mapping[str, str]
"""Which layers a loss compares: ``"auto"``, ``"uniform"``, ``"same_shape"``, or names or patterns of layers of the
student -> those of the teacher. See tersor.distill.pairing."""

WEIGHTS: dict[str, Callable[[float], float]] = {
    "constant": lambda part: 1.0,
    "rise": lambda part: part,
    "fall": lambda part: 1.0 - part,
    "cosine": lambda part: 0.5 * (1.0 + math.cos(math.pi * part)),
}
"""How the weight of a loss moves over a training: its factor at a part from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What came with the batch.

    Attributes:
        mask: bool [batch, tokens], which tokens count; None where all do.
        labels: as the user's batches have them; None where they have none.
        own: the loss that the student returned itself; None where it returned none.
    """

    mask: Tensor | None = None
    labels: Any = None
    own: Tensor | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillLoss:
    """A number that is small when the student does as the teacher does.

    Args:
        weight: its factor in the sum of all losses.
        schedule: how the weight moves over the training, a name in ``WEIGHTS``.

    Attributes:
        name: its name in the registry.
        source: the paper.

    Raises:
        DistillError: a value out of range.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""

    weight: float = 1.0
    schedule: str = "constant"

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if isinstance(spec.default, float) and not _is_positive(value):
                raise DistillError(f"loss {self.name!r}: {spec.name} = {value!r} is not a number above 0")
        if self.schedule not in WEIGHTS:
            raise DistillError(
                f"loss {self.name!r}: unknown schedule {self.schedule!r}; known: {', '.join(sorted(WEIGHTS))}"
            )

    def factor(self, part: float) -> float:
        """The weight at a part of the training, from 0 to 1."""
        return self.weight * WEIGHTS[self.schedule](part)


class OutputLoss(DistillLoss, abc.ABC):
    """A loss on what the models return."""

    @abc.abstractmethod
    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        """A scalar, from logits or other outputs [..., classes] of both."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureLoss(DistillLoss, abc.ABC):
    """A loss on what inner layers return.

    Args:
        layers: which ones are compared with which.

    Attributes:
        compares: ``"positions"``: vectors of channels at the same places, whose sizes have to be equal, if need be by a
            projection; ``"places"``: the same places, whatever the channels; ``"examples"``: relations between the
            examples of a batch, whatever the shapes.
        projection: ``"differ"``: a trained linear map from the student's channels to the teacher's where they differ;
            ``"always"``: also where they don't; ``"never"``.
        least: pairs of layers that it needs.
    """

    compares: ClassVar[Literal["positions", "places", "examples"]] = "positions"
    projection: ClassVar[Literal["never", "differ", "always"]] = "never"
    least: ClassVar[int] = 1

    layers: Layers = dataclasses.field(default="auto", hash=False)

    def pick(self, output: Any) -> Tensor | None:
        """The feature in what a layer returned: its first floating tensor; None where there is none."""
        return first_float(output)

    def total(self, student: Sequence[Tensor], teacher: Sequence[Tensor], given: Given) -> Tensor:
        """A scalar from the features of all pairs: the mean over them."""
        values = [self.value(one, other, given) for one, other in zip(student, teacher, strict=True)]
        return torch.stack(values).mean()

    @abc.abstractmethod
    def value(self, student: Tensor, teacher: Tensor, given: Given) -> Tensor:
        """A scalar from the features of one pair."""


def first_float(output: Any) -> Tensor | None:
    """The first floating tensor in a layer's output: a tensor, or mappings and sequences of such."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return next((found for item in output if (found := first_float(item)) is not None), None)
    return None


LOSSES: dict[str, type[DistillLoss]] = {}
"""Every known loss by its name."""

LossT = TypeVar("LossT", bound=type[DistillLoss])


def register_loss(cls: LossT) -> LossT:
    """Class decorator that makes a loss known by its name.

    Raises:
        ValueError: no name, no source, or the name belongs to another class.
    """
    if not cls.name or not cls.source or LOSSES.get(cls.name, cls) is not cls:
        raise ValueError(f"loss {cls.__qualname__} needs a source and a name of its own, got {cls.name!r}")
    LOSSES[cls.name] = cls
    return cls


def make_loss(spec: str | Mapping[str, Any] | DistillLoss) -> DistillLoss:
    """A loss from its name, from a mapping ``{"loss": name, field: value, ...}`` as recipes hold it, or as it is.

    Raises:
        DistillError: an unknown name or field; the message lists what exists.
    """
    if isinstance(spec, DistillLoss):
        return spec
    given: dict[str, Any] = {"loss": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    name = given.pop("loss", None)
    if name not in LOSSES:
        raise DistillError(f"{name!r} is not a known loss{_close(name, LOSSES)}; known: {', '.join(sorted(LOSSES))}")
    fields = {field.name: field for field in dataclasses.fields(LOSSES[name])}
    for key, value in given.items():
        if key not in fields:
            raise DistillError(f"loss {name!r} has no {key!r}{_close(key, fields)}; it has {', '.join(fields)}")
        if isinstance(fields[key].default, float) and type(value) is int:
            given[key] = float(value)
    return LOSSES[name](**given)


def to_spec(loss: DistillLoss) -> dict[str, Any]:
    """The mapping that :func:`make_loss` makes an equal loss from; defaults are left out."""
    given = {field.name: getattr(loss, field.name) for field in dataclasses.fields(loss)}
    defaults = {field.name: field.default for field in dataclasses.fields(loss)}
    return {"loss": loss.name} | {key: value for key, value in given.items() if value != defaults[key]}


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _close(name: Any, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

"""How sparsity grows with the optimiser steps: one-shot, linear, cubic."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from tersor.errors import PruneError


@dataclass(frozen=True)
class Schedule(abc.ABC):
    """The part of the final sparsity that is reached after a number of optimiser steps.

    Args:
        steps: the step after which the final sparsity is reached; 0 means at once.
        every: steps between two removals.
        begin: the step of the first removal.

    Raises:
        PruneError: not ``0 <= begin <= steps`` or ``every < 1``.
    """

    name: ClassVar[str] = ""

    steps: int = 0
    every: int = 1
    begin: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.steps or self.every < 1:
            raise PruneError(f"a schedule needs 0 <= begin <= steps and every >= 1, got {self}")

    def due(self, step: int) -> bool:
        """Whether weights are removed after this step (0: before training)."""
        if step == self.steps:
            return True
        return self.begin <= step < self.steps and (step - self.begin) % self.every == 0 and self.part(step) > 0

    def part(self, step: int) -> float:
        """The part of the final sparsity after this step, from 0 to 1."""
        if step >= self.steps:
            return 1.0
        if step < self.begin:
            return 0.0
        return self.curve((step - self.begin) / (self.steps - self.begin))

    @abc.abstractmethod
    def curve(self, progress: float) -> float:
        """The part of the final sparsity at a progress from 0 to 1."""


SCHEDULES: dict[str, type[Schedule]] = {}
"""Every known schedule by its name."""

ScheduleT = TypeVar("ScheduleT", bound=type[Schedule])


def register_schedule(cls: ScheduleT) -> ScheduleT:
    """Class decorator that makes a schedule known by its name.

    Raises:
        ValueError: no name, or it belongs to another class.
    """
    if not cls.name or SCHEDULES.get(cls.name, cls) is not cls:
        raise ValueError(f"schedule {cls.__qualname__} needs a name of its own, got {cls.name!r}")
    SCHEDULES[cls.name] = cls
    return cls


@register_schedule
class OneShot(Schedule):
    """Everything at once, after ``steps`` steps."""

    name: ClassVar[str] = "one_shot"

    def curve(self, progress: float) -> float:
        return 1.0 if progress >= 1 else 0.0


@register_schedule
class Linear(Schedule):
    """The same amount in every step."""

    name: ClassVar[str] = "linear"

    def curve(self, progress: float) -> float:
        return progress


@register_schedule
class Cubic(Schedule):
    """``1 - (1 - progress)^3``: much while weights are plenty, little near the end.

    Source: Zhu and Gupta, To Prune, or Not to Prune, arXiv 1710.01878, with an initial sparsity of zero.
    """

    name: ClassVar[str] = "cubic"

    def curve(self, progress: float) -> float:
        return 1.0 - (1.0 - progress) ** 3


def make_schedule(schedule: str | Schedule, steps: int, every: int) -> Schedule:
    """A schedule by its name, or as it is.

    Raises:
        PruneError: an unknown name; a gradual schedule without ``steps``; a schedule object beside ``steps``.
    """
    if isinstance(schedule, Schedule):
        if steps or every != 1:
            raise PruneError("steps and every belong to the schedule object; don't give them twice")
        return schedule
    if schedule not in SCHEDULES:
        raise PruneError(f"unknown schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
    if schedule != "one_shot" and steps < 1:
        raise PruneError(f"the {schedule} schedule needs steps: after how many optimiser steps it is done")
    return SCHEDULES[schedule](steps=steps, every=every)

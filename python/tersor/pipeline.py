"""What the steps of a recipe work on, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tersor.selection import matches


@dataclass
class Run:
    """A recipe under way.

    Attributes:
        model: a copy of the float model; steps change it in place.
        teacher: the float model itself; it is run, not changed.
        include, exclude: the recipe's shell wildcards on module names.
        inputs: the example inputs, first the typical ones; empty where there are none.
        calibration, train: batches, or None.
        untie: layers with tied weights may be changed, too.
        force: nothing is measured.
        progress: progress bars on a terminal.
        evaluate: the user's metric of a model, higher is better; None: there is none.
        state: a file that a step which trains writes its state in, to go on from; None: none is kept.
        notes, warnings: what steps want to say in the report.
    """

    model: nn.Module
    teacher: nn.Module
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    inputs: Sequence[Any] = ()
    calibration: Iterable[Any] | None = None
    train: Iterable[Any] | None = None
    untie: bool = False
    force: bool = False
    progress: bool = False
    evaluate: Callable[[nn.Module], float] | None = None
    state: Path | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def batches(self) -> Iterable[Any] | None:
        """What a step that looks at inputs is given: calibration data, else the example inputs, else None."""
        if self.calibration is not None:
            return self.calibration
        return self.inputs or None

    def selected(self, name: str) -> bool:
        """Whether the recipe is about the module of this name."""
        if matches([name], self.exclude) is not None:
            return False
        return not self.include or matches([name], self.include) is not None

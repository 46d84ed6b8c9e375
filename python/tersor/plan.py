"""What a recipe will do to a model, and about how long it will take, before anything is done."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterable, Sized
from typing import Any, cast

from torch import nn

from tersor import modules, observe, text
from tersor.errors import RecipeError, SwapError
from tersor.recipe import Recipe, Step
from tersor.report import wording
from tersor.selection import matches

SCHEMA = "tersor.plan/1"
_JUDGING = 1.5
"""Seconds that measuring the kernels of one shape of layer takes."""
_TRAINING = 4.0
"""A training step in forward passes: the teacher's, the student's, and twice that for gradients."""


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """One step.

    Attributes:
        name: of the step.
        settings: its settings that are not the defaults.
        batches: that it will run through the model, with every epoch counted; None where the data have no length.
        seconds: predicted; None where it can't be told.
        bytes: of the model after it, predicted; None where it depends on the weights.
    """

    name: str
    settings: str
    batches: int | None
    seconds: float | None
    bytes: int | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A recipe's steps on a model.

    Attributes:
        steps: in order.
        bytes: of the float model.
        layers: linear layers that the recipe is about, of all.
        forward: seconds of one call on the example inputs; None without them.
        missing: what the recipe needs and was not given.
    """

    steps: tuple[PlannedStep, ...]
    bytes: int
    layers: tuple[int, int]
    forward: float | None
    missing: tuple[str, ...]

    def table(self, width: int = 100, color: bool = False) -> str:
        """The plan as text."""
        table = text.plain_table("step", "settings", "batches", "about", "size after", right=2)
        for step in self.steps:
            batches = "-" if step.batches is None else str(step.batches)
            size = "depends" if step.bytes is None else wording.size(step.bytes)
            table.add_row(step.name, step.settings, batches, _duration(step.seconds), size)
        total = sum(step.seconds or 0.0 for step in self.steps)
        lines = [
            f"{self.layers[0]} of {self.layers[1]} linear layers; the float model takes {wording.size(self.bytes)}.",
            f"All together about {_duration(total)}; nothing was changed or written.",
        ]
        lines += [f"Missing: {what}" for what in self.missing]
        return text.render(table, *lines, width=width, color=color)

    def to_json(self) -> str:
        """Plain data with a ``schema`` key."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=2) + "\n"


def plan(
    model: nn.Module,
    recipe: Recipe,
    example_inputs: Any = None,
    calibration: Iterable[Any] | None = None,
    train: Iterable[Any] | None = None,
    **_: Any,
) -> Plan:
    """Check a recipe against a model and predict sizes and times; the arguments are those of :func:`tersor.compress`.

    Times come from one call of the model on the example inputs, and one on a training batch. Sizes assume that every
    layer the recipe is about is replaced; they leave out what depends on the weights, such as ranks and channels.

    Raises:
        RecipeError: the steps can't follow each other, or no layer is selected.
        SwapError: the model failed on its inputs.
    """
    recipe.check_order()
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, modules.linear_types())]
    chosen = [
        module
        for name, module in named
        if matches([name], recipe.exclude) is None
        and (not recipe.include or matches([name], recipe.include) is not None)
    ]
    if not chosen:
        raise RecipeError("the recipe selects no linear layer of the model")
    forward = None if example_inputs is None else _seconds(model, example_inputs)
    missing = []
    needed = {use for step in recipe.steps for use in step.uses()}
    if "train" in needed and train is None:
        missing.append("train data, for the steps that train")
    if "calibration" in needed and calibration is None and example_inputs is None:
        missing.append("calibration data or example inputs")
    training = _first_seconds(model, train) if "train" in needed else None
    linear = sum(parameter.numel() * 4 for module in chosen for parameter in module.parameters())
    size = total = modules.memory_bytes(model)
    shapes = {tuple(parameter.shape) for module in chosen for parameter in module.parameters() if parameter.dim() == 2}
    share, known = 1.0, True
    steps: list[PlannedStep] = []
    for step in recipe.steps:
        seconds: float | None = None if step.edits else len(shapes) * _JUDGING
        batches = None
        if "train" in step.uses() and (batches := _count(train)) is not None:
            batches *= int(getattr(step, "epochs", 1))
            seconds = None if training is None else batches * training * _TRAINING
        elif "calibration" in step.uses() and (batches := _count(calibration)) is not None:
            seconds = (seconds or 0.0) + batches * (forward or 0.0)
        share, known = _share(step, share, known)
        last = step is recipe.steps[-1]
        size = total - linear + round(linear * (share if last or not step.edits else 1.0))
        steps.append(PlannedStep(step.name, _settings(step), batches, seconds, size if known else None))
    return Plan(tuple(steps), total, (len(chosen), len(named)), forward, tuple(missing))


def _share(step: Step, share: float, known: bool) -> tuple[float, bool]:
    """The part of the linear layers' bytes that is left when layers are replaced, and whether it can be told."""
    if step.name == "prune":
        kept = 1.0 - cast(float, getattr(step, "sparsity", 0.0))
        return share * min(1.0, kept * 1.1), known  # a tenth for where the values are
    if step.name in ("quantize", "qat"):
        bits = cast(float, getattr(step, "average_bits", None) or getattr(step, "bits", 8))
        return share * bits / 32, known
    return share, known and step.name == "distill"


def _count(batches: object) -> int | None:
    return len(batches) if isinstance(batches, Sized) else None


def _seconds(model: nn.Module, inputs: Any) -> float:
    observe.run(model, inputs, "example_inputs")
    started = time.perf_counter()
    observe.run(model, inputs, "example_inputs")
    return time.perf_counter() - started


def _first_seconds(model: nn.Module, batches: Iterable[Any] | None) -> float | None:
    """Of a call on the first batch; None where there is none that the model alone takes, such as one with labels."""
    batch = None if batches is None else next(iter(itertools.islice(batches, 1)), None)
    try:
        return None if batch is None else _seconds(model, batch)
    except SwapError:
        return None


def _settings(step: Step) -> str:
    shown = []
    for spec in dataclasses.fields(step):
        value = getattr(step, spec.name)
        default = spec.default if spec.default is not dataclasses.MISSING else None
        if value != default and value not in ((), {}):
            shown.append(f"{spec.name} = {value}")
    return ", ".join(shown)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

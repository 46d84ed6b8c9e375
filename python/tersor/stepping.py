"""The steps of a recipe that edit the model, one after another, each weighed and kept when it is finished."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor, nn

from tersor.conversion import Conversion
from tersor.footprint import Costs, step_row
from tersor.footprint import count as count_costs
from tersor.modules import accelerated_types
from tersor.pipeline import Run
from tersor.recipe import Step
from tersor.report import StepRow
from tersor.work import WorkFolder

FLOAT = "float"
LAST = "replace layers"


def apply_edits(run: Run, edits: Sequence[Step], work: WorkFolder) -> list[StepRow]:
    """Apply the steps to the run's model, but for those that the folder says are done.

    Returns:
        What the float model costs, and what every step made of it.
    """
    rows = work.resume(run) or [_row(FLOAT, run, run.teacher, None)]
    for index, step in enumerate(edits):
        if index < work.finished:
            continue
        run.state = work.training_state(index)
        started = time.perf_counter()
        step.apply(run)
        run.state = None
        rows.append(_row(step.name, run, run.model, time.perf_counter() - started))
        if all(earlier.storable for earlier in edits[: index + 1]):
            work.done(index, run, rows)
    return rows


def final_row(compressed: nn.Module, conversion: Conversion, seconds: float, before: StepRow) -> StepRow:
    """What the model with its accelerated layers costs, which was like ``before`` without them."""
    run = conversion.run
    inputs = run.inputs[0] if run.inputs else None
    unread = {old: count for old, new in conversion.replacements.items() if (count := _unread(old, new))}
    if any(isinstance(module, accelerated_types()) for module in run.model.modules()):
        costs = Costs(before.parameters, before.nonzeros, before.flops)  # int8 graphs take the place of float layers
    else:
        costs = count_costs(run.model, inputs, unread)
    timed, took = not run.force, None if run.force else seconds
    return step_row(LAST, compressed, run.teacher, inputs, run.evaluate, seconds=took, timed=timed, costs=costs)


def _unread(old: nn.Module, new: nn.Module) -> int:
    """How many weights of a float layer, or block of layers, its sparse form does not multiply by."""
    extents, stored = getattr(new, "extents", None), getattr(new, "stored", None)
    if extents is not None and stored is not None:
        return int(sum(n * k for n, k in extents.values()) - sum(stored.values()))
    density, weight = getattr(new, "density", None), getattr(old, "weight", None)
    if not isinstance(density, float) or not isinstance(weight, Tensor):
        return 0
    return round((1.0 - density) * weight.numel())


def _row(name: str, run: Run, model: nn.Module, seconds: float | None) -> StepRow:
    inputs = run.inputs[0] if run.inputs else None
    timed = not run.force and model is not run.teacher
    seconds = None if run.force else seconds
    return step_row(name, model, run.teacher, inputs, run.evaluate, seconds=seconds, timed=timed)

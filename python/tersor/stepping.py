"""The steps of a recipe that edit the model, one after another, each weighed and kept when it is finished."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import nn

from tersor.conversion import Conversion
from tersor.footprint import step_row
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


def final_row(compressed: nn.Module, conversion: Conversion, seconds: float) -> StepRow:
    """What the model with its accelerated layers costs."""
    densities = {old: getattr(new, "density", None) for old, new in conversion.replacements.items()}
    skipped = {old: 1.0 - density for old, density in densities.items() if isinstance(density, float)}
    run = conversion.run
    return step_row(
        LAST,
        compressed,
        run.teacher,
        run.inputs[0] if run.inputs else None,
        run.evaluate,
        seconds=None if run.force else seconds,
        timed=not run.force,
        counted=run.model,
        skipped=skipped,
    )


def _row(name: str, run: Run, model: nn.Module, seconds: float | None) -> StepRow:
    inputs = run.inputs[0] if run.inputs else None
    timed = not run.force and model is not run.teacher
    seconds = None if run.force else seconds
    return step_row(name, model, run.teacher, inputs, run.evaluate, seconds=seconds, timed=timed)

"""What steps that change structure run the model on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tersor.errors import RecipeError

if TYPE_CHECKING:
    from tersor.pipeline import Run


def an_input(run: Run, step: str) -> Any:
    """The example input, else the first calibration batch.

    Raises:
        RecipeError: there is neither.
    """
    return next(iter(run.inputs or batches(run, step)))


def batches(run: Run, step: str) -> Iterable[Any]:
    """Calibration data, else the example inputs.

    Raises:
        RecipeError: there are none.
    """
    found = run.batches
    if found is None:
        raise RecipeError(f"step {step!r} has to run the model: pass example_inputs= or calibration=")
    return found

"""The step that makes kernels of convolutions smaller."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar, Literal

from tersor.errors import RecipeError
from tersor.recipe import Step, register_step

if TYPE_CHECKING:
    from tersor.pipeline import Run


@register_step
@dataclasses.dataclass(frozen=True)
class ShrinkKernels(Step):
    """Replace convolutions whose kernel is larger than 3x3, fitted by least squares on calibration inputs.

    The recipe's include and exclude select among the layers. See :func:`tersor.restructure.shrink_kernels`.

    Args:
        method: ``"single"``: one 3x3; ``"stacked"``: several 3x3 in a row that reach as far; ``"separable"``: a
            depthwise 3x3 and a 1x1.
        max_error: layers whose outputs have a larger relative error stay as they are; None: none does.
    """

    name: ClassVar[str] = "shrink_kernels"

    method: Literal["single", "stacked", "separable"] = dataclasses.field(
        default="single", metadata={"choices": ("single", "stacked", "separable")}
    )
    max_error: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        value = self.max_error
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
            raise RecipeError(f"step 'shrink_kernels': max_error = {value!r} is not a number from 0 on")

    def uses(self) -> frozenset[str]:
        """Calibration data."""
        return frozenset({"calibration"})

    def apply(self, run: Run) -> None:
        """Shrink kernels of ``run.model``.

        Raises:
            RecipeError: there is neither an example input nor calibration data.
            StructureError: see :func:`tersor.restructure.shrink_kernels`.
        """
        from tersor.restructure import shrink_kernels
        from tersor.steps.data import batches

        result = shrink_kernels(
            run.model,
            batches(run, self.name),
            method=self.method,
            max_error=self.max_error,
            include=run.include,
            exclude=run.exclude,
        )
        for row in result.rows:
            run.notes.append(f"{row.name}: kernel {row.before} -> {row.after}, relative error {row.error:.3f}")

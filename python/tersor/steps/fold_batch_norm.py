"""The step that folds batch norms away."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from tersor.recipe import Step, register_step

if TYPE_CHECKING:
    from tersor.pipeline import Run


@register_step
@dataclasses.dataclass(frozen=True)
class FoldBatchNorm(Step):
    """Fold batch norms into the convolutions and linear layers before them, and remove identities and dropouts.

    The outputs in evaluation stay the same within the bound that :func:`tersor.restructure.fold_batch_norm` states.
    Steps that train come before it. The recipe's include and exclude select among the layers.
    """

    name: ClassVar[str] = "fold_batch_norm"

    def apply(self, run: Run) -> None:
        """Fold batch norms of ``run.model``.

        Raises:
            RecipeError: there is neither an example input nor calibration data.
            StructureError: no batch norm can be folded.
        """
        from tersor.restructure import fold_batch_norm, remove_identities
        from tersor.steps.data import an_input

        result = fold_batch_norm(run.model, an_input(run, self.name), include=run.include, exclude=run.exclude)
        removed = remove_identities(run.model)
        run.notes.append(f"{len(result.folded)} batch norms folded, {len(removed)} identities and dropouts removed")

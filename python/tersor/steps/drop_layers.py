"""The step that takes blocks out of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from tersor.errors import RecipeError
from tersor.recipe import Step, register_step

if TYPE_CHECKING:
    from tersor.pipeline import Run


@register_step
@dataclasses.dataclass(frozen=True)
class DropLayers(Step):
    """Remove whole blocks, such as encoder layers. A Distill step after it recovers.

    The recipe's include and exclude select among the blocks. See :func:`tersor.restructure.drop_layers`.

    Args:
        count: how many blocks to drop.
        by: ``"influence"``: those whose output is most like their input, over calibration data, else the example
            inputs; ``"loss"``: those without which the outputs are nearest to those of the float model.
        names: instead of ``count``, the names of the blocks.
        stack: the name of the one list of blocks to look at; None: all.
    """

    name: ClassVar[str] = "drop_layers"

    count: int | None = None
    by: Literal["influence", "loss"] = dataclasses.field(
        default="influence", metadata={"choices": ("influence", "loss")}
    )
    names: Sequence[str] = dataclasses.field(default=(), hash=False)
    stack: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        named = [] if isinstance(self.names, str) else list(self.names)
        if isinstance(self.names, str) or not all(isinstance(name, str) for name in named):
            raise RecipeError(f"step 'drop_layers': names = {self.names!r} is not a list of names")
        if (self.count is None) == (not named):
            raise RecipeError("step 'drop_layers': give either count or names")
        if self.count is not None and (type(self.count) is not int or self.count < 1):
            raise RecipeError(f"step 'drop_layers': count = {self.count!r} is not a whole number from 1 on")
        if self.stack is not None and not isinstance(self.stack, str):
            raise RecipeError(f"step 'drop_layers': stack = {self.stack!r} is not a name")
        object.__setattr__(self, "names", tuple(named))

    def uses(self) -> frozenset[str]:
        """Calibration data."""
        return frozenset({"calibration"})

    def apply(self, run: Run) -> None:
        """Drop blocks of ``run.model``.

        Raises:
            RecipeError: there is neither an example input nor calibration data.
            StructureError: see :func:`tersor.restructure.drop_layers`.
        """
        from tersor.pruning import match
        from tersor.restructure import drop_layers
        from tersor.steps.data import batches

        result = drop_layers(
            run.model,
            batches(run, self.name),
            self.count,
            by=self.by,
            names=self.names,
            stack=self.stack,
            include=run.include,
            exclude=run.exclude,
            loss=match(run.teacher) if self.by == "loss" else None,
        )
        scores = ", ".join(f"{name} ({result.scores[name]:.4f})" for name in result.dropped)
        run.notes.append(f"dropped {scores}, chosen by {'name' if self.names else self.by}")

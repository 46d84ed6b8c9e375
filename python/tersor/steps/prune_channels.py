"""The step that makes layers narrower."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tersor.errors import RecipeError
from tersor.prune import CRITERIA
from tersor.recipe import Step, register_step

if TYPE_CHECKING:
    from tersor.pipeline import Run


@register_step
@dataclasses.dataclass(frozen=True)
class PruneChannels(Step):
    """Remove channels, neurons, attention heads and recurrent units for good, with all that is coupled to them.

    Which layers are looked at follows from the recipe's include and exclude: a group of coupled layers is narrowed if
    all layers that make its units are included. See :func:`tersor.prune_channels`. A Distill step after it recovers.

    Args:
        ratio: the part to remove: of the units of each group, or, with ``target``, of the whole model's
            ``"parameters"``, ``"flops"`` or measured ``"latency"``.
        target: what ``ratio`` is a part of; None: the units.
        criterion: what matters, a name in ``tersor.prune.CRITERIA``, summed over each unit's weights. Those that look
            at data take the calibration data, else the example inputs; ``gradient`` and ``fisher`` need calibration
            data with labels and a model that returns its loss.
        scope: every group loses the same part (``"layer"``), or the least of all groups leave (``"global"``).
        overrides: shell wildcard on layer names -> the ratio of their groups, 0 for none; the first match counts.
        round_to: what is left of a layer is a multiple of it.
        width: also narrow what embeddings make: the width of a whole transformer.
    """

    name: ClassVar[str] = "prune_channels"

    ratio: float = 0.5
    target: Literal["parameters", "flops", "latency"] | None = dataclasses.field(
        default=None, metadata={"choices": (None, "parameters", "flops", "latency")}
    )
    criterion: str = dataclasses.field(default="magnitude", metadata={"choices": CRITERIA})
    scope: Literal["layer", "global"] = dataclasses.field(default="layer", metadata={"choices": ("layer", "global")})
    overrides: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    round_to: int = 8
    width: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.overrides, Mapping) or not all(isinstance(key, str) for key in self.overrides):
            raise RecipeError(f"step 'prune_channels': overrides = {self.overrides!r} is not a table of wildcards")
        for key, value in (("ratio", self.ratio), *self.overrides.items()):
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not 0 <= value < 1:
                raise RecipeError(f"step 'prune_channels': {key} = {value!r} is not a number in [0, 1)")
        if type(self.round_to) is not int or self.round_to < 1:
            raise RecipeError(f"step 'prune_channels': round_to = {self.round_to!r} is not a whole number from 1 on")
        if type(self.width) is not bool:
            raise RecipeError(f"step 'prune_channels': width = {self.width!r} is not true or false")
        object.__setattr__(self, "overrides", {key: float(value) for key, value in self.overrides.items()})

    def uses(self) -> frozenset[str]:
        """Calibration data, where the criterion looks at data."""
        return frozenset() if CRITERIA[self.criterion].needs == "nothing" else frozenset({"calibration"})

    def apply(self, run: Run) -> None:
        """Narrow the selected layers of ``run.model``.

        Raises:
            RecipeError: there is neither an example input nor calibration data.
            PruneError: see :func:`tersor.prune_channels`.
        """
        from tersor.prune import prune_channels
        from tersor.pruning import own_loss
        from tersor.steps.data import an_input

        needs = CRITERIA[self.criterion].needs
        how: dict[str, Any] = (
            {"ratio": self.ratio} if self.target is None else {"target": {self.target: 1 - self.ratio}}
        )
        result = prune_channels(
            run.model,
            an_input(run, self.name),
            **how,
            criterion=self.criterion,
            scope=self.scope,
            overrides=self.overrides,
            round_to=self.round_to,
            include=run.include,
            exclude=run.exclude,
            width=self.width,
            calibration=run.batches if needs != "nothing" else None,
            loss=own_loss if needs == "gradients" else None,
        )
        narrowed = sum(row.after < row.before for row in result.groups)
        run.notes.append(f"{narrowed} groups of layers made narrower by {self.criterion}: {result.summary()}")
        for row in result.groups:
            if row.reason is not None:
                run.warnings.append(f"{row.layers[0]} keeps its {row.kind}: {row.reason}")

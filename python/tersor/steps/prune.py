"""The step that sets weights to zero."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from tersor.errors import PruneError, RecipeError
from tersor.prune import CRITERIA, SCHEDULES, Blocks, parse_pattern
from tersor.recipe import Step, register_step

if TYPE_CHECKING:
    from tersor.pipeline import Run

_MOST_BLOCK = 64  # weights in a block that a sparse layer can describe


@register_step
@dataclasses.dataclass(frozen=True)
class Prune(Step):
    """Set weights of linear layers to zero and run the layers that gain by it on what is left.

    Alone it gives sparse float layers; before a Quantize, sparse int8 ones. A layer becomes sparse where that is
    measured faster than dense on this host; elsewhere it stays dense, with its zeros, and the report says from which
    sparsity on it would not.

    Args:
        criterion: what matters, a name in ``tersor.prune.CRITERIA``. Those that look at inputs take them from the
            calibration data, else from the example inputs; ``gradient`` and ``fisher`` need calibration data with
            labels and a model that returns its loss.
        pattern: what leaves together: ``"1x4"`` (outputs x inputs, which the kernels like best) and other blocks of at
            most 64 weights, ``"unstructured"``, N:M such as ``"2:4"``.
        sparsity: the part of the weights that is zero at the end; None: what an N:M pattern has, else 0.8.
        schedule: ``"one_shot"``; or ``"cubic"`` and ``"linear"``, which remove little by little while training.
        scope: scores are compared within each ``"row"``, ``"layer"`` or over all layers (``"global"``); ``"auto"``:
            what the criterion's paper does.
        overrides: shell wildcard on names -> its layers' own sparsity, 0 for none; the first match counts.
        epochs, learning_rate: of the training on the train data, if there are any, with AdamW. 0 epochs, which a
            schedule of one shot can have, leave the training to a later step.
        blockwise: encoder blocks are pruned one after another and solved to return what the float blocks return, see
            :func:`tersor.prune.blockwise.prune_blocks`; minutes that save hours of training. With ``sparsegpt``, at
            once, without epochs.
        recovery: the part of a gradual schedule's training, at its end, in which nothing is removed any more.
        loss: what training makes small: ``"match"``, the distance of the outputs to those of the float model on the
            same batch, without labels or dropout; ``"model"``, the loss that the model itself returns.

    Sources: docs/pruning.md has one for each criterion and schedule.
    """

    name: ClassVar[str] = "prune"
    lasting: ClassVar[bool] = False

    criterion: str = dataclasses.field(default="magnitude", metadata={"choices": CRITERIA})
    pattern: str = "1x4"
    sparsity: float | None = None
    schedule: str = dataclasses.field(default="one_shot", metadata={"choices": SCHEDULES})
    scope: str = dataclasses.field(default="auto", metadata={"choices": ("auto", "row", "layer", "global")})
    overrides: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    epochs: int = 1
    learning_rate: float = dataclasses.field(default=1e-4, metadata={"range": (1e-9, 1.0)})
    blockwise: bool = False
    recovery: float = dataclasses.field(default=0.3, metadata={"range": (0.0, 1.0)})
    loss: Literal["match", "model"] = dataclasses.field(default="match", metadata={"choices": ("match", "model")})

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            shape = parse_pattern(self.pattern)
        except (PruneError, TypeError) as error:
            raise RecipeError(f"step 'prune': pattern = {self.pattern!r}: {error}") from error
        if isinstance(shape, Blocks) and (max(shape.rows, shape.cols) > 99 or shape.rows * shape.cols > _MOST_BLOCK):
            raise RecipeError(f"step 'prune': pattern = {self.pattern!r} has blocks of more than {_MOST_BLOCK} weights")
        sparsity = self.sparsity
        if sparsity is None:
            sparsity = 0.8 if shape.sparsity is None else shape.sparsity
            object.__setattr__(self, "sparsity", sparsity)
        if shape.sparsity is not None and sparsity != shape.sparsity:
            raise RecipeError(f"step 'prune': the pattern {shape} has the sparsity {shape.sparsity}, not {sparsity}")
        least = 0 if self.schedule == "one_shot" else 1
        if type(self.epochs) is not int or not least <= self.epochs <= 1_000_000:
            raise RecipeError(f"step 'prune': epochs = {self.epochs!r} is not a whole number from {least} to 1000000")
        if not isinstance(self.blockwise, bool):
            raise RecipeError(f"step 'prune': blockwise = {self.blockwise!r} is neither true nor false")
        if self.blockwise and (self.criterion, self.schedule, self.epochs) != ("sparsegpt", "one_shot", 0):
            raise RecipeError(
                'step \'prune\': blockwise = true goes with criterion = "sparsegpt", schedule = "one_shot" and '
                "epochs = 0; a distill step after it trains"
            )
        if not isinstance(self.overrides, Mapping) or not all(isinstance(key, str) for key in self.overrides):
            raise RecipeError(f"step 'prune': overrides = {self.overrides!r} is not a table of wildcards")
        for name, value in (("sparsity", sparsity), *self.overrides.items()):
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not 0 <= value <= 1:
                raise RecipeError(f"step 'prune': {name} = {value!r} is not a number from 0 to 1")
        object.__setattr__(self, "overrides", {key: float(value) for key, value in self.overrides.items()})

    def uses(self) -> frozenset[str]:
        """Train data, and calibration data where the criterion looks at inputs."""
        needs = CRITERIA[self.criterion].needs
        return frozenset(
            {name for name, used in (("train", self.epochs > 0), ("calibration", needs != "nothing")) if used}
        )

    def apply(self, run: Run) -> None:
        """Set weights of the selected linear layers to zero, and train where there is data.

        Raises:
            RecipeError: data that the schedule or the criterion needs is missing.
            PruneError: the data are not usable.
            SwapError: no linear layer is selected.
        """
        from tersor.pruning import prune_model, pruned_note

        run.notes.append(pruned_note(self, prune_model(run, self)))

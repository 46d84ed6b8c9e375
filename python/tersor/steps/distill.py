"""The step that lets the model learn from its float self."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from tersor.distill.losses import make_loss, to_spec
from tersor.errors import DistillError, RecipeError
from tersor.recipe import Step, register_step
from tersor.training import RATES, adamw

if TYPE_CHECKING:
    from tersor.pipeline import Run


@register_step
@dataclasses.dataclass(frozen=True)
class Distill(Step):
    """Train the model to do as the float model does, on the train data; they need no labels.

    Weights that an earlier step set to zero stay zero.

    Args:
        losses: names in ``tersor.distill.LOSSES``, or tables such as ``{loss = "kl", temperature = 2.0}``.
        epochs, learning_rate, rate, warmup: of the training with AdamW; ``rate`` is how the learning rate moves, a name
            in ``tersor.training.RATES``, ``warmup`` the part of the training in which it rises from zero.
        accumulate: batches per optimiser step.
        clip: the largest norm of the gradient; 0 for no limit.
        autocast: ``"bfloat16"``; None computes in the dtype of the weights.
        mode: ``"eval"``: no dropout, and running statistics stay; ``"train"``.
        labels: where a batch has its labels, see :class:`tersor.distill.Distiller`.
        memory_gb: how many gigabytes of the float model's answers are kept, so that epochs after the first need not run
            it; pays where batches come again, as those of a list do. 0 keeps none.
        patience: stop after this many epochs in which ``evaluate`` of :func:`tersor.compress` was not better.
        seed: of everything random.

    Sources: docs/distillation.md has one for each loss.
    """

    name: ClassVar[str] = "distill"

    losses: Sequence[str | Mapping[str, Any]] = dataclasses.field(default=("match",), hash=False)
    epochs: int = 1
    learning_rate: float = dataclasses.field(default=1e-4, metadata={"range": (1e-9, 1.0)})
    rate: str = dataclasses.field(default="cosine", metadata={"choices": RATES})
    warmup: float = dataclasses.field(default=0.03, metadata={"range": (0.0, 0.99)})
    accumulate: int = 1
    clip: float = dataclasses.field(default=1.0, metadata={"range": (0.0, 1e9)})
    autocast: Literal["bfloat16"] | None = dataclasses.field(default=None, metadata={"choices": (None, "bfloat16")})
    mode: Literal["train", "eval"] = dataclasses.field(default="eval", metadata={"choices": ("eval", "train")})
    labels: str | int | None = None
    memory_gb: float = dataclasses.field(default=0.0, metadata={"range": (0.0, 1e6)})
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [self.losses] if isinstance(self.losses, str | Mapping) else list(self.losses)
        try:
            specs = tuple(to_spec(make_loss(loss)) for loss in given)
        except (DistillError, TypeError) as error:
            raise RecipeError(f"step 'distill': {error}") from error
        if not specs:
            raise RecipeError("step 'distill': losses is empty; name at least one")
        object.__setattr__(self, "losses", specs)
        for name, least in (("epochs", 1), ("accumulate", 1), ("patience", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise RecipeError(f"step 'distill': {name} = {value!r} is not a whole number from {least} on")
        if isinstance(self.labels, bool) or not isinstance(self.labels, str | int | None):
            raise RecipeError(f"step 'distill': labels = {self.labels!r} is neither a name nor an index")

    def uses(self) -> frozenset[str]:
        """Train data."""
        return frozenset({"train"})

    def reason_against(self, before: Sequence[Step]) -> str | None:
        """It can follow everything that leaves a model to train; rounding lives through it."""
        return None

    def apply(self, run: Run) -> None:
        """Train ``run.model``.

        Raises:
            RecipeError: no train data, or patience without ``evaluate``.
            DistillError, TrainError: see :func:`tersor.distill.fit`.
        """
        from tersor.distill import fit
        from tersor.prune.zeros import KeptZeros

        if run.train is None:
            raise RecipeError("the distill step needs train data: pass train=batches; they need no labels")
        if self.patience is not None and run.evaluate is None:
            raise RecipeError("patience needs a metric: pass evaluate=function, higher is better")
        result = fit(
            run.model,
            run.teacher,
            run.train,
            self.losses,
            labels=self.labels,
            mode=self.mode,
            memory_gb=self.memory_gb,
            seed=self.seed,
            epochs=self.epochs,
            optimizer=adamw(self.learning_rate),
            rate=self.rate,
            warmup=self.warmup,
            accumulate=self.accumulate,
            clip=self.clip or None,
            autocast=None if self.autocast is None else getattr(torch, self.autocast),
            evaluate=run.evaluate if self.patience is not None else None,
            patience=self.patience,
            companions=[KeptZeros(run.model)],
            state=run.state,
            progress=run.progress,
        )
        done = f"{result.losses[0]:.3g} to {result.losses[-1]:.3g}" if result.losses else "no step"
        names = ", ".join(result.parts) or "nothing"
        run.notes.append(f"distilled by {names} for {len(result.losses)} steps, loss {done}")

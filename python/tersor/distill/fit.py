"""Distillation for those who have only a loader."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from tersor.distill.distiller import Distiller, LossSpec
from tersor.distill.pairing import Pairs
from tersor.errors import DistillError, TrainError
from tersor.training import Trained, randomness, sharding, train, unfrozen


@dataclass(frozen=True)
class DistillResult:
    """How a distillation went.

    Attributes:
        trained: losses, values of the user's metric, where it was resumed.
        parts: by the loss: its last value, without its weight.
        pairs: by the loss: which layers (student, teacher) were compared.
    """

    trained: Trained
    parts: dict[str, float]
    pairs: dict[str, Pairs]

    @property
    def losses(self) -> list[float]:
        """The weighted sum of all losses at each optimiser step."""
        return self.trained.losses


def fit(
    student: nn.Module,
    teacher: nn.Module,
    loader: Iterable[Any],
    losses: LossSpec | Iterable[LossSpec] = "match",
    *,
    labels: str | int | None = None,
    mode: Literal["train", "eval"] = "train",
    evaluate: Callable[[nn.Module], float] | None = None,
    seed: int | None = 0,
    memory_gb: float = 0.0,
    **training: Any,
) -> DistillResult:
    """Teach a student, in place. Masks of a :class:`tersor.prune.Pruner` live on: give it in ``companions``.

    Args:
        student, teacher, losses, labels, mode, memory_gb: see :class:`tersor.distill.Distiller`. A student of which no
            parameter requires a gradient is trained as a whole.
        loader: batches, with a length; iterated once per epoch. The first one serves as the example.
        evaluate: ``evaluate(student)`` after each epoch; higher is better, and the student ends with its best weights.
        seed: of projections and of all that training draws; None uses the generators as they are.
        training: any other argument of :func:`tersor.training.train`: ``epochs``, ``optimizer``, ``rate``, ``warmup``,
            ``accumulate``, ``autocast``, ``clip``, ``patience``, ``state``, ``save_seconds``, ``companions``,
            ``shard`` (the teacher is split, too), ``progress``.

    Raises:
        DistillError: see :class:`tersor.distill.Distiller`; the loader has no batch.
        TrainError: see :func:`tersor.training.train`.
    """
    if isinstance(loader, Iterator):
        raise DistillError("the loader is an iterator, which can be used only once; give a list or a DataLoader")
    before = randomness.capture(loader)
    example = next(iter(itertools.islice(loader, 1)), None)
    randomness.put_back(before, loader)
    if example is None:
        raise DistillError("the loader holds no batch")
    with unfrozen(student), contextlib.ExitStack() as split:
        distiller = Distiller(
            student, teacher, losses, example, labels=labels, mode=mode, seed=seed or 0, memory_gb=memory_gb
        )

        def loss(module: nn.Module, batch: Any) -> Tensor:
            value: Tensor = module(batch)
            return value

        def judge(module: nn.Module) -> float:
            assert evaluate is not None
            return evaluate(student)

        settings = {"text": "distilling", **training, "seed": seed, "evaluate": judge if evaluate else None}
        if settings.get("before_step") is not None:
            raise TrainError("before_step is what moves the weights of the losses; it can't be given here")
        for model in (student, teacher):
            split.enter_context(sharding.sharded(model, bool(settings.get("shard"))))
        done = train(distiller, loader, loss, before_step=distiller.at, **settings)
    return DistillResult(done, dict(distiller.parts), distiller.pairs)

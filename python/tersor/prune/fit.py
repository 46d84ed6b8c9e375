"""The field's loop for those who have only a loader and a loss: train, select, remove, fine-tune."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sized
from dataclasses import replace
from typing import Any, Final

from torch import nn

from tersor.errors import PruneError, TrainError
from tersor.prune.pruner import Pruner, PruneResult
from tersor.training import Loss, train

_OF_TRAINING: Final = frozenset(
    name for name, spec in inspect.signature(train).parameters.items() if spec.kind is spec.KEYWORD_ONLY
)


def fit(
    model: nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    epochs: int = 1,
    accumulate: int = 1,
    recovery: float = 0.3,
    removals: int = 20,
    schedule: str = "cubic",
    criterion_loss: Loss | None = None,
    **settings: Any,
) -> PruneResult:
    """Prune a model while it is trained, then fine-tune it, in place.

    Args:
        loader: batches, with a length; iterated once per epoch.
        loss: ``loss(model, batch)``, a scalar to differentiate.
        accumulate: batches per optimiser step; their mean gradient is used.
        recovery: the part of the optimiser steps, at the end, in which nothing is removed any more.
        removals: in how many portions a gradual schedule removes, at most.
        schedule: ``"cubic"``, ``"linear"``, or ``"one_shot"``, which removes all before the first step.
        criterion_loss: what the criterion looks at, where that is not ``loss``: a loss that compares the model with its
            float self, say, has no gradient to begin with.
        settings: any argument of :class:`tersor.prune.Pruner` but ``schedule``, ``steps``, ``every`` and ``loss``,
            and of :func:`tersor.training.train`, such as ``optimizer``, ``autocast``, ``evaluate``, ``state`` and
            ``progress``. Without ``calibration`` the loader is used.

    Returns:
        The result, with the loss of every optimiser step. Training flags are left as they were found.

    Raises:
        PruneError: a value out of range, a loader without length or batches, a loss that is NaN or infinite.
    """
    if not isinstance(loader, Sized) or len(loader) == 0:
        raise PruneError("the loader needs a length above zero; give a list or a DataLoader")
    if epochs < 1 or accumulate < 1 or removals < 1 or not 0 <= recovery <= 1:
        raise PruneError("fit needs epochs, accumulate and removals >= 1 and recovery from 0 to 1")
    per_epoch = math.ceil(len(loader) / accumulate)
    steps = 0 if schedule == "one_shot" else max(1, round(per_epoch * epochs * (1 - recovery)))
    training = {name: settings.pop(name) for name in _OF_TRAINING & settings.keys()}
    training = {"text": "pruning", **training, "epochs": epochs, "accumulate": accumulate}
    settings = {"calibration": loader, **settings, "loss": criterion_loss or loss}
    pruner = Pruner(model, schedule=schedule, steps=steps, every=max(1, math.ceil(steps / removals)), **settings)
    training["companions"] = [pruner, *training.get("companions", ())]
    try:
        done = train(model, loader, loss, **training)
    except TrainError as error:
        raise PruneError(str(error)) from error
    return replace(pruner.finish(), losses=done.losses)

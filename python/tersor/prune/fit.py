"""The field's loop for those who have only a loader and a loss: train, select, remove, fine-tune."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tersor.errors import PruneError
from tersor.progress import track
from tersor.prune.calibration import Loss
from tersor.prune.pruner import Pruner, PruneResult

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def fit(
    model: nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    epochs: int = 1,
    optimizer: MakeOptimizer | None = None,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    recovery: float = 0.3,
    removals: int = 20,
    schedule: str = "cubic",
    criterion_loss: Loss | None = None,
    progress: bool = True,
    **settings: Any,
) -> PruneResult:
    """Prune a model while it is trained, then fine-tune it, in place.

    Args:
        loader: batches, with a length; iterated once per epoch.
        loss: ``loss(model, batch)``, a scalar to differentiate.
        optimizer: makes an optimiser for the trainable parameters; None: AdamW with a learning rate of 1e-3 without
            weight decay.
        accumulate: batches per optimiser step; their mean gradient is used.
        autocast: the dtype of ``torch.autocast``, say ``torch.bfloat16``; None for none.
        recovery: the part of the optimiser steps, at the end, in which nothing is removed any more.
        removals: in how many portions a gradual schedule removes, at most.
        schedule: ``"cubic"``, ``"linear"``, or ``"one_shot"``, which removes all before the first step.
        criterion_loss: what the criterion looks at, where that is not ``loss``: a loss that compares the model with its
            float self, say, has no gradient to begin with.
        progress: a bar on standard error where that is a terminal.
        settings: any argument of :class:`tersor.prune.Pruner` but ``schedule``, ``steps``, ``every`` and ``loss``.
            Without ``calibration`` the loader is used.

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
    settings = {"calibration": loader, **settings, "loss": criterion_loss or loss}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trainer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0) if optimizer is None else optimizer(parameters)
    pruner = Pruner(model, schedule=schedule, steps=steps, every=max(1, math.ceil(steps / removals)), **settings)
    losses: list[float] = []
    with _training(model):
        for epoch in range(epochs):
            text = f"pruning, epoch {epoch + 1} of {epochs}"
            batches = iter(track(loader, text, total=len(loader), shown=progress))
            while portion := list(itertools.islice(batches, accumulate)):
                losses.append(_optimiser_step(model, portion, loss, trainer, autocast))
                pruner.step()
    return replace(pruner.finish(), losses=losses)


@contextlib.contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        yield
    finally:
        for module, training in flags:
            module.training = training


def _optimiser_step(
    model: nn.Module, batches: list[Any], loss: Loss, trainer: torch.optim.Optimizer, autocast: torch.dtype | None
) -> float:
    device = next(model.parameters()).device.type
    total = 0.0
    trainer.zero_grad()
    for batch in batches:
        with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            value = loss(model, batch) / len(batches)
        value.backward()  # type: ignore[no-untyped-call]
        total += float(value.detach())
    if not math.isfinite(total):
        raise PruneError(f"the loss became {total}; try a smaller learning rate")
    trainer.step()
    return total

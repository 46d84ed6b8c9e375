"""The training loop: accumulation, autocast, clipping, schedules, early stopping, several processes, states on disk."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tersor.errors import TrainError
from tersor.progress import track
from tersor.training import group, randomness, sharding
from tersor.training.modes import training_mode
from tersor.training.rates import Curve, Rate
from tersor.training.resume import Resumable
from tersor.training.stopping import Stopping

Loss = Callable[[nn.Module, Any], Tensor]
"""``loss(model, batch)``: a scalar, lower is better."""

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Companion(Protocol):
    """What goes along with a training and acts between its steps, such as a Pruner or a QAT.

    Where it has an attribute ``done``, evaluations count for early stopping only while that is true. A training that
    writes its state needs its ``state_dict`` and ``load_state_dict`` too.
    """

    def step(self) -> None:
        """Called after every optimiser step."""


@dataclass
class Trained:
    """How a training went.

    Attributes:
        losses: the loss of each optimiser step.
        values: what ``evaluate`` gave after each epoch.
        best: the epoch, from 0, whose weights the model has now; None where nothing was evaluated.
        stopped: whether it ended before its last epoch.
        resumed: the optimiser step it went on from; 0 for one that began anew.
    """

    losses: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    best: int | None = None
    stopped: bool = False
    resumed: int = 0


def train(
    model: nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    epochs: int = 1,
    optimizer: MakeOptimizer | None = None,
    rate: str | Curve = "constant",
    warmup: float = 0.0,
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
    clip: float | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    patience: int | None = None,
    seed: int | None = None,
    state: str | os.PathLike[str] | None = None,
    save_seconds: float = 60.0,
    companions: Sequence[Companion] = (),
    before_step: Callable[[float], None] | None = None,
    shard: bool = False,
    text: str = "training",
    progress: bool = True,
) -> Trained:
    """Train a model in place.

    In a process group of torch.distributed every optimiser step takes the same batches as in one process: the ranks
    share out the ``accumulate`` batches, and gradients are averaged by DistributedDataParallel.

    Args:
        loader: batches, with a length; iterated once per epoch.
        loss: ``loss(model, batch)``, a scalar to differentiate.
        optimizer: makes an optimiser for the trainable parameters; None: AdamW with a learning rate of 1e-3 without
            weight decay.
        rate, warmup: how the learning rate moves, see :class:`tersor.training.rates.Rate`.
        accumulate: batches per optimiser step; their mean gradient is used.
        autocast: the dtype of ``torch.autocast``, say ``torch.bfloat16``; None for none.
        clip: the largest norm of the gradient of all parameters together; None for no limit.
        evaluate: ``evaluate(model)`` after each epoch, in eval mode without gradients; higher is better. The model ends
            with the weights of its best epoch.
        patience: stop after this many epochs without a better value; None: never.
        seed: of torch's, Python's and NumPy's random numbers; their states are put back at the end. None uses them
            as they are.
        state: a file that the training writes itself down in. Where it exists, the training goes on from it, and ends
            as if it had never been interrupted; a finished one only gives the model its weights.
        save_seconds: the shortest time between two writes of ``state``.
        companions: see :class:`Companion`.
        before_step: told the part of the training that is over, before every optimiser step.
        shard: in a process group: every process holds only its part of weights, gradients and optimiser states, by
            FSDP2, see :func:`tersor.training.sharding.sharded`.
        text: what the progress bar says.
        progress: a bar on standard error where that is a terminal.

    Returns:
        How it went. Training flags of the model are left as they were found.

    Raises:
        TrainError: a value out of range, a loader without length or batches, nothing to train, a loss that is NaN or
            infinite, a state of another training, or another process of the group has gone or stands elsewhere.
    """
    if not isinstance(loader, Sized) or len(loader) == 0:
        raise TrainError("the loader needs a length above zero; give a list or a DataLoader")
    if epochs < 1 or accumulate < 1 or (clip is not None and clip <= 0) or (patience is not None and patience < 1):
        raise TrainError("training needs epochs, accumulate and patience >= 1 and clip > 0")
    if patience is not None and evaluate is None:
        raise TrainError("patience needs evaluate(model), which says when the model is better")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainError(f"no parameter of {type(model).__name__} requires a gradient; there is nothing to train")
    batches, per_epoch = len(loader), math.ceil(len(loader) / accumulate)
    done = Trained()
    with sharding.sharded(model, shard):
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        trainer = (
            torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0) if optimizer is None else optimizer(parameters)
        )
        sharding.one_by_one(trainer)
        pace = Rate(trainer, rate, warmup)
        step = _OptimiserStep(model, loss, trainer, parameters, autocast, clip)
        stopping = Stopping(model, evaluate, patience)
        what: dict[str, Any] = {
            "epochs": epochs,
            "batches": batches,
            "accumulate": accumulate,
            "clip": clip,
            "seed": seed,
        }
        what |= {"optimizer": type(trainer).__name__, "autocast": str(autocast), "warmup": warmup}
        what |= {"rate": rate if isinstance(rate, str) else "a function"}
        with randomness.seeded(seed), group.joined(model, accumulate), training_mode(model):
            book = Resumable(state, save_seconds, model, trainer, companions, stopping, done, what)
            book.resume(loader)
            group.check_same(len(done.losses))
            for epoch in range(book.epoch, epochs):
                if book.finished or stopping.over:
                    break
                bar = f"{text}, epoch {epoch + 1} of {epochs}"
                for portion in _portions(book.open_epoch(loader), accumulate, bar, batches, book.batch, progress):
                    part = len(done.losses) / (per_epoch * epochs)
                    if before_step is not None:
                        before_step(part)
                    pace.set(len(done.losses), per_epoch * epochs)
                    done.losses.append(step(portion))
                    for companion in companions:
                        companion.step()
                    book.write(loader, batch=book.batch + len(portion))
                group.share_buffers(model)
                stopping.look(epoch, ready=all(getattr(companion, "done", True) for companion in companions))
                book.write(loader, epoch=epoch + 1, batch=0)
            stopping.restore()
            book.finish(loader)
    done.values, done.best, done.stopped = stopping.values, stopping.best, len(done.losses) < per_epoch * epochs
    return done


def _portions(
    batches: Iterator[Any], size: int, text: str, total: int, passed: int, progress: bool
) -> Iterator[list[Any]]:
    """The batches of every optimiser step of an epoch that is ``passed`` batches old."""
    shown = iter(track(batches, text, total=total - passed, shown=progress))
    while portion := list(itertools.islice(shown, size)):
        yield portion


class _OptimiserStep:
    """One optimiser step over the batches of a portion; returns the mean loss."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        trainer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        autocast: torch.dtype | None,
        clip: float | None,
    ) -> None:
        self._trainer, self._autocast, self._clip = trainer, autocast, clip
        self._device = parameters[0].device.type
        self._shared = group.Shared(model, loss)

    def __call__(self, portion: Sequence[Any]) -> float:
        total = 0.0
        self._trainer.zero_grad()
        for batch, weight, last in self._shared.mine(portion):
            with self._shared.gradients_later(not last):
                with torch.autocast(self._device, dtype=self._autocast, enabled=self._autocast is not None):
                    value = self._shared.loss(batch) * weight
                value.backward()  # type: ignore[no-untyped-call]
            total += float(value.detach())
        total = self._shared.mean(total)
        if not math.isfinite(total):
            raise TrainError(f"the loss became {total}; try a smaller learning rate")
        self._shared.finish(self._clip)
        self._trainer.step()
        return total

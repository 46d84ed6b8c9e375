"""A training that writes itself down, so that a killed one goes on as if nothing had happened."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor import processes
from tersor.errors import TrainError
from tersor.training import group, randomness, sharding
from tersor.training.state import read_state, write_state


class Resumable:
    """Where a training stands.

    Attributes:
        epoch, batch: the next ones, from 0.
        finished: whether the state that was found is that of a whole training.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        seconds: float,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        companions: Sequence[Any],
        stopping: Any,
        done: Any,
        what: Mapping[str, Any],
    ) -> None:
        self._path = None if path is None else Path(path)
        self._seconds, self._model, self._optimizer, self._what = seconds, model, optimizer, dict(what)
        self._companions, self._stopping, self._done = companions, stopping, done
        self._what["parameters"] = {name: list(tensor.shape) for name, tensor in model.named_parameters()}
        self._split = any(sharding.is_part(parameter) for parameter in model.parameters())
        self.epoch = self.batch = 0
        self.finished = False
        self._random: dict[str, Any] | None = None
        self._epoch_random: dict[str, Any] = {}
        self._written = time.monotonic()

    def resume(self, loader: Iterable[Any]) -> None:
        """Take over the state in the file, if there is one.

        Raises:
            TrainError: it is damaged, or that of another training; the message says what differs.
        """
        stateless = [type(one).__name__ for one in self._companions if not hasattr(one, "load_state_dict")]
        if self._path is not None and stateless:
            raise TrainError(f"{', '.join(stateless)} can't go on from a state; train without state=")
        if self._path is not None and not self._path.parent.is_dir():
            raise TrainError(f"there is no folder {self._path.parent} for the training state")
        if self._path is None or not self._path.exists():
            return
        state = read_state(self._path)
        self._compare(state.get("what", {}))
        self._load_model(state["model"])
        self._optimizer.load_state_dict(sharding.split_optimizer(state["optimizer"], self._optimizer))
        for companion, saved in zip(self._companions, state["companions"], strict=True):
            companion.load_state_dict(saved)
        self._stopping.load_state_dict(state["stopping"])
        self._done.losses = state["losses"].tolist()
        self._done.resumed = len(self._done.losses)
        self.epoch, self.batch, self.finished = state["epoch"], state["batch"], state["finished"]
        self._random, self._epoch_random = state["random"], state["epoch_random"]

    def open_epoch(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The batches of the epoch that are still to come, the random numbers being where they were."""
        if self._random is None:
            self._epoch_random = randomness.capture(loader)
            return iter(loader)
        now, self._random = self._random, None
        if not self.batch:
            randomness.put_back(now, loader)
            return self.open_epoch(loader)
        randomness.put_back(self._epoch_random, loader)
        batches = iter(loader)
        for _ in itertools.islice(batches, self.batch):
            pass
        randomness.put_back(now, ())
        return batches

    def write(self, loader: Iterable[Any], *, batch: int, epoch: int | None = None) -> None:
        """Note the place, and write the file where the last time is long enough ago."""
        self.batch, self.epoch = batch, self.epoch if epoch is None else epoch
        if self._path is not None and self._due():
            self._save(loader)

    def finish(self, loader: Iterable[Any]) -> None:
        """Write the file of a finished training."""
        if self._path is not None and not self.finished:
            self.finished = True
            self._save(loader)

    def _due(self) -> bool:
        """Whether the last write is long enough ago; the first process tells the others where they have to help."""
        due = time.monotonic() - self._written >= self._seconds
        return processes.gather(due)[0] if self._split else due

    def _save(self, loader: Iterable[Any]) -> None:
        if self._path is not None and (group.is_first() or self._split):
            tensors = {
                "model": dict(_tensors(self._model)),
                "optimizer": self._optimizer.state_dict(),
                "stopping": self._stopping.state_dict(),
            }
            state = {
                "what": self._what,
                "epoch": self.epoch,
                "batch": self.batch,
                "finished": self.finished,
                **(sharding.whole(tensors) if self._split else tensors),
                "companions": [companion.state_dict() for companion in self._companions],
                "losses": torch.tensor(self._done.losses, dtype=torch.float64),
                "random": randomness.capture(loader),
                "epoch_random": self._epoch_random,
            }
            if group.is_first():
                write_state(self._path, state)
        self._written = time.monotonic()

    def _compare(self, found: Mapping[str, Any]) -> None:
        differ = [key for key in self._what if found.get(key) != self._what[key]]
        if differ:
            names = ", ".join(
                "other parameters" if key == "parameters" else f"{key} {found.get(key)}, now {self._what[key]}"
                for key in differ
            )
            raise TrainError(
                f"{self._path} is the state of another training ({names}); give another file, or delete it"
            )

    @torch.no_grad()
    def _load_model(self, saved: Mapping[str, Tensor]) -> None:
        tensors = dict(_tensors(self._model))
        if tensors.keys() != saved.keys():
            raise TrainError(f"{self._path} is the state of a model with other buffers")
        for name, tensor in tensors.items():
            sharding.local(tensor).copy_(sharding.part_of(saved[name], tensor))


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, also those that a state dict leaves out, shared ones once."""
    yield from model.named_parameters()
    yield from model.named_buffers()

"""Several processes at one training: torch.distributed and DistributedDataParallel, as torchrun starts them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tersor import processes
from tersor.errors import GoneError, TrainError
from tersor.processes import rank, size
from tersor.training import sharding


def is_first() -> bool:
    """Whether this process writes files."""
    return rank() == 0


@contextlib.contextmanager
def launched(timeout: float = 600.0) -> Iterator[int]:
    """Join the process group that ``torchrun`` describes in the environment, and leave it at the end.

    Without torchrun, or in a group already, nothing happens. NCCL where there are GPUs, else Gloo.

    Args:
        timeout: seconds after which waiting for another process fails.

    Yields:
        The rank of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or size() > 1:
        yield rank()
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))
    try:
        yield rank()
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def joined(model: nn.Module, accumulate: int) -> Iterator[None]:
    """Turns the loss of another process into one clear error, and gives all ranks the buffers of the first at the end.

    Raises:
        TrainError: ``accumulate`` can't be shared out, or another process has gone.
    """
    if size() == 1:
        yield
        return
    if accumulate % size():
        raise TrainError(
            f"{size()} processes can't share {accumulate} batches per optimiser step evenly; "
            f"make accumulate a multiple of {size()}"
        )
    try:
        with processes.present():
            yield
            share_buffers(model)
    except GoneError as error:
        raise GoneError(f"{error} with the same state file to go on from its last write") from error


def check_same(step: int) -> None:
    """Check that all processes go on from the same step.

    Raises:
        TrainError: some found a state file and some did not, say.
    """
    if size() == 1:
        return
    steps = processes.gather(step)
    if len(set(steps)) > 1:
        raise TrainError(f"the processes stand at the steps {steps}; all of them have to see the same state file")


def share_buffers(model: nn.Module) -> None:
    """All processes get the buffers of the first one, such as running statistics."""
    if size() > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)


class Shared:
    """A loss over the batches of an optimiser step, of which this process does its part."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        self._module: nn.Module = _LossModule(model, loss)
        self._several = size() > 1
        self._device = next(model.parameters()).device
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._split = any(sharding.is_part(parameter) for parameter in self._parameters)
        if self._several and not self._split:
            self._module = DistributedDataParallel(self._module, find_unused_parameters=True)

    def mine(self, portion: Sequence[Any]) -> Iterator[tuple[Any, float, bool]]:
        """This process's batches with the weight of each in the mean gradient, and whether it is the last one.

        Where a portion has fewer batches than there are processes, some repeat its first one with weight zero.
        """
        own = list(portion[rank() :: size()]) or [portion[0]]
        counts = len(portion[rank() :: size()]) > 0
        for index, batch in enumerate(own):
            with processes.running(rank() + index * size() if counts else None):
                yield batch, size() / len(portion) if counts else 0.0, index == len(own) - 1

    def gradients_later(self, later: bool) -> contextlib.AbstractContextManager[Any]:
        """Whether gradients are averaged over the processes only at a later batch."""
        if later and isinstance(self._module, DistributedDataParallel):
            return self._module.no_sync()
        return contextlib.nullcontext()

    def loss(self, batch: Any) -> Tensor:
        """The loss of a batch."""
        value: Tensor = self._module(batch)
        return value

    def finish(self, most: float | None) -> None:
        """Average the gradients that are not yet averaged, and clip all of them together."""
        if self._split:
            sharding.average_whole(self._parameters)
        if most is not None:
            clip = sharding.clip if self._split else nn.utils.clip_grad_norm_
            clip(self._parameters, most)

    def mean(self, value: float) -> float:
        """The mean of a number over the processes."""
        if not self._several:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self._device)
        distributed.all_reduce(total)
        return float(total) / size()


class _LossModule(nn.Module):
    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = (loss,)  # not as a module of this one

    def forward(self, batch: Any) -> Tensor:
        return self._loss[0](self.model, batch)

"""The processes of a torch.distributed group: who they are, whose batches are whose, and what they tell each other.

Without a group everything here is that of one process, and no message is sent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from torch import Tensor, distributed

from tersor.errors import GoneError, SwapError, TersorError

T = TypeVar("T")

_running: list[int | None] = []


def size() -> int:
    """How many processes there are; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if size() > 1 else 0


@contextlib.contextmanager
def running(batch: int | None) -> Iterator[None]:
    """Says which batch of the data the model runs on; None: one that is not to be counted."""
    _running.append(batch)
    try:
        yield
    finally:
        _running.pop()


def batch_number() -> int | None:
    """The number of the batch that the model runs on, 0 where nobody said; None where it is not to be counted."""
    return _running[-1] if _running else 0


def share(batches: Iterable[Any], run: Callable[[int, Any], None], failed: type[TersorError] = SwapError) -> int:
    """Run every batch in one of the processes: number i in process ``i mod size``.

    Every process iterates over all batches, so they have to see the same ones in the same order.

    Args:
        run: called with the number of a batch and the batch.
        failed: what processes raise where it failed in another one.

    Returns:
        How many batches there are.

    Raises:
        TersorError: ``failed``, where it failed in another process; where it failed itself, what ``run`` raised.
        GoneError: another process has gone.
    """
    count, failure = 0, None
    try:
        for index, batch in enumerate(batches):
            if index % size() == rank():
                with running(index):
                    run(index, batch)
            count += 1
    except Exception as error:
        if size() == 1:
            raise
        failure = error
    if size() == 1:
        return count
    told = gather((count, None if failure is None else f"{type(failure).__name__}: {failure}"))
    if failure is not None:
        raise failure
    for number, (_, message) in enumerate(told):
        if message is not None:
            raise failed(f"process {number} failed. {message}")
    if len({one for one, _ in told}) > 1:
        raise failed(f"the processes were given {[one for one, _ in told]} batches; all of them need the same ones")
    return count


def gather(value: T) -> list[T]:
    """What all processes have, in their order.

    Raises:
        GoneError: another process has gone.
    """
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    with present():
        distributed.all_gather_object(found, value)
    return found


def total(tensor: Tensor) -> Tensor:
    """The sum of a tensor over the processes, on its device; the same bits in all of them.

    Raises:
        GoneError: another process has gone.
    """
    if size() == 1:
        return tensor
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    summed = tensor.to(device, copy=True)
    with present():
        distributed.all_reduce(summed)
    return summed.to(tensor.device)


@contextlib.contextmanager
def present() -> Iterator[None]:
    """Turns the loss of another process into one clear error.

    Raises:
        GoneError: another process has gone.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, GoneError) or not _lost(error):
            raise
        raise GoneError(
            f"another process of the group has gone ({str(error).splitlines()[0]}); start all of them again"
        ) from error


def _lost(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower() or "nccl" in str(error).lower()

"""Batches of calibration data: how many examples they hold, and where to stop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor


def limited(batches: Iterable[Any], samples: int | None) -> Iterator[Any]:
    """The batches up to the one with which ``samples`` examples were seen; all where it is None."""
    seen = 0
    for batch in batches:
        yield batch
        seen += batch_size(batch)
        if samples is not None and seen >= samples:
            return


class Limited:
    """What :func:`limited` yields, as often as it is asked for."""

    def __init__(self, batches: Iterable[Any], samples: int | None) -> None:
        self._batches, self._samples = batches, samples

    def __iter__(self) -> Iterator[Any]:
        return limited(self._batches, self._samples)


def batch_size(batch: Any) -> int:
    """The examples in a batch: the first dimension of the first tensor in it, 1 where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((batch_size(part) for part in parts if isinstance(part, Tensor)), 1)

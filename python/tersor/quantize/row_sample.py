"""An observer: a few rows of everything that a layer was given, each with the same chance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tersor import processes

ROWS = 64


class RowSample:
    """At most `size` rows of all inputs, drawn uniformly without knowing how many there will be.

    Every row draws a random key and those with the largest keys are kept, which is reservoir sampling; the keys come
    from a generator of its own, so the same inputs give the same rows. Every batch (:func:`tersor.processes.running`)
    has its own seed, so that it doesn't matter which process sees it.

    Attributes:
        rows: [at most size, channels] in the dtype of the inputs.
    """

    def __init__(self, channels: int, dtype: torch.dtype, size: int = ROWS) -> None:
        self.size = size
        self.rows = torch.empty((0, channels), dtype=dtype, device="cpu")
        self._keys = torch.empty(0, device="cpu")
        self._generator = torch.Generator().manual_seed(0)
        self._batch = 0

    def add(self, x: Tensor) -> None:
        """Takes an input [..., channels] in; nothing of it is kept but copies of rows."""
        rows = x.detach().reshape(-1, x.shape[-1])
        batch = processes.batch_number() or 0
        if batch != self._batch:
            self._generator.manual_seed(batch)
            self._batch = batch
        keys, chosen = torch.rand(len(rows), generator=self._generator, device="cpu").topk(min(self.size, len(rows)))
        keys = torch.cat([self._keys, keys])  # [at most 2 size]
        self._keys, kept = keys.topk(min(self.size, len(keys)))
        self.rows = torch.cat([self.rows, rows[chosen].to(self.rows.dtype)])[kept]

    def state(self) -> tuple[Tensor, Tensor]:
        """The rows and their keys."""
        return self.rows, self._keys

    def merge(self, states: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Become the sample of everything that samples in these states, of the same size, were drawn from."""
        keys = torch.cat([own for _, own in states])
        self._keys, kept = keys.topk(min(self.size, len(keys)))
        self.rows = torch.cat([rows for rows, _ in states])[kept]

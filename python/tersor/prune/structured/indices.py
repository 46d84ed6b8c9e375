"""Which slices of which tensors belong together: a union-find over one number per slice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class Indices:
    """Every slice of every parameter's dimension gets a number; numbers of slices that must leave together are united.

    A class of united numbers can be pinned, with a reason: its slices have to stay.
    """

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(0, dtype=np.int64)
        self._reason: Ids = np.zeros(0, dtype=np.int64)  # at roots; 0: not pinned
        self._reasons = [""]

    def __len__(self) -> int:
        return len(self._parent)

    def fresh(self, count: int) -> Ids:
        """Numbers that nothing else has."""
        first = len(self._parent)
        made = np.arange(first, first + count, dtype=np.int64)
        self._parent = np.concatenate([self._parent, made])
        self._reason = np.concatenate([self._reason, np.zeros(count, dtype=np.int64)])
        return made

    def find(self, ids: Ids) -> Ids:
        """The number that stands for the class of each."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[ids] = roots
        return roots

    def unite(self, one: Ids, other: Ids) -> None:
        """Puts each of ``one`` into the class of its partner in ``other``."""
        left, right = self.find(one), self.find(other)
        for a, b in zip(left[left != right], right[left != right], strict=True):
            low, high = sorted((self._root(a), self._root(b)))
            self._parent[high] = low
            self._reason[low] = self._reason[low] or self._reason[high]

    def pin(self, ids: Ids, reason: str) -> None:
        """The classes of ``ids`` have to stay; a reason given before holds."""
        roots = np.unique(self.find(ids))
        roots = roots[self._reason[roots] == 0]
        if len(roots):
            self._reasons.append(reason)
            self._reason[roots] = len(self._reasons) - 1

    def pinned(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether each has to stay."""
        found: NDArray[np.bool_] = self._reason[self.find(ids)] != 0
        return found

    def reason(self, ids: Ids) -> str:
        """Why the first pinned one of ``ids`` has to stay; empty where none is."""
        found = self._reason[self.find(ids)]
        return self._reasons[int(found[found != 0][0])] if found.any() else ""

    def _root(self, number: np.int64) -> np.int64:
        while self._parent[number] != number:
            number = self._parent[number]
        return number

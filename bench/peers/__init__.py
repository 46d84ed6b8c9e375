"""Rivals on the same linear layer, set up as their makers advise; each import line adds one peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
Run = Callable[[], object]


class MissingPeerError(Exception):
    """The peer is not installed or does not run here; the message says why."""


@dataclass(frozen=True)
class Problem:
    """y = x W^T + b in fp32: x [m, k], weight [n, k], bias [n]."""

    x: F32
    weight: F32
    bias: F32
    threads: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.x.shape[0], self.weight.shape[0], self.x.shape[1]


def make_problem(m: int, n: int, k: int, threads: int, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    weight = (rng.standard_normal((n, k)) / k**0.5).astype(np.float32)
    return Problem(
        rng.standard_normal((m, k)).astype(np.float32), weight, rng.standard_normal(n).astype(np.float32), threads
    )


def quantise_weight(weight: F32) -> tuple[npt.NDArray[np.int8], F32]:
    """Symmetric int8 per output channel, what every int8 peer is given."""
    scale = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
    return np.clip(np.round(weight / scale[:, None]), -127, 127).astype(np.int8), scale

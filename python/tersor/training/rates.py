"""How the learning rate moves over a training: constant, linear, cosine, each after a warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor
from torch.optim import Optimizer

from tersor.errors import TrainError

Curve = Callable[[float], float]
"""The factor on the learning rate at a part of the training, from 0 to 1."""

RATES: dict[str, Curve] = {
    "constant": lambda part: 1.0,
    "linear": lambda part: 1.0 - part,
    "cosine": lambda part: 0.5 * (1.0 + math.cos(math.pi * part)),
}
"""Every known curve by its name."""


class Rate:
    """Sets the learning rate of an optimiser before each of its steps.

    Args:
        curve: a name in ``RATES``, or a function.
        warmup: the part of the training in which the rate rises from zero.

    Raises:
        TrainError: an unknown name, or ``warmup`` out of [0, 1).
    """

    def __init__(self, optimizer: Optimizer, curve: str | Curve, warmup: float) -> None:
        if isinstance(curve, str) and curve not in RATES:
            raise TrainError(f"unknown learning rate schedule {curve!r}; known: {', '.join(RATES)}, or a function")
        if not 0 <= warmup < 1:
            raise TrainError(f"warmup is a part of the training from 0 to below 1, got {warmup}")
        self._optimizer = optimizer
        self._full = [float(group["lr"]) for group in optimizer.param_groups]
        self._curve = RATES[curve] if isinstance(curve, str) else curve
        self._warmup = warmup

    def set(self, step: int, steps: int) -> None:
        """The rate for optimiser step number ``step``, from 0, of ``steps``."""
        rising = self._warmup * steps
        part = max(0.0, step - rising) / max(1.0, steps - rising)
        factor = self._curve(part) * min(1.0, (step + 1) / (rising + 1))
        for group, full in zip(self._optimizer.param_groups, self._full, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(full * factor)
            else:
                group["lr"] = full * factor

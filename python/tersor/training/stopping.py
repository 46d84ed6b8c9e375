"""Early stopping on a user's metric, and the weights of the best epoch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import TrainError
from tersor.training import sharding


class Stopping:
    """Evaluates after every epoch.

    Attributes:
        values: of all epochs so far.
        best: the epoch with the best value, from 0.
    """

    def __init__(self, model: nn.Module, evaluate: Callable[[nn.Module], float] | None, patience: int | None) -> None:
        self._model, self._evaluate, self._patience = model, evaluate, patience
        self.values: list[float] = []
        self.best: int | None = None
        self._kept: list[Tensor] = []

    @property
    def over(self) -> bool:
        """Whether the patience is at its end."""
        return (
            self._patience is not None and self.best is not None and len(self.values) - 1 - self.best >= self._patience
        )

    def look(self, epoch: int, *, ready: bool) -> None:
        """Evaluate; ``ready`` is False while the model is not in its final form, so that this epoch can't be the best.

        Raises:
            TrainError: the value is no finite number.
        """
        if self._evaluate is None:
            return
        flags = [(module, module.training) for module in self._model.modules()]
        try:
            self._model.eval()
            with torch.no_grad():
                value = float(self._evaluate(self._model))
        finally:
            for module, training in flags:
                module.training = training
        if not math.isfinite(value):
            raise TrainError(f"evaluate(model) gave {value} after epoch {epoch + 1}")
        self.values.append(value)
        if ready and (self.best is None or value > self.values[self.best]):
            self.best = epoch
            self._kept = [tensor.detach().clone() for tensor in self._tensors()]

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model the weights of its best epoch."""
        if self.best is not None and self.best != len(self.values) - 1:
            for tensor, kept in zip(self._tensors(), self._kept, strict=True):
                sharding.local(tensor).copy_(sharding.local(kept))

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on."""
        return {"values": self.values, "best": self.best, "kept": self._kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.values, self.best = list(state["values"]), state["best"]
        self._kept = [
            sharding.split(kept, tensor) for kept, tensor in zip(state["kept"], self._tensors(), strict=False)
        ]

    def _tensors(self) -> Iterator[Tensor]:
        return itertools.chain(self._model.parameters(), self._model.buffers())

"""Zeros that stay zeros while a pruned model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import PruneError
from tersor.training import sharding


class KeptZeros:
    """Puts the zeros of a pruned model back after every optimiser step.

    For a training that follows a finished pruning; a :class:`Pruner` that is at work does it itself. It watches every
    parameter of two or more dimensions that holds zeros and something else besides.

    Args:
        model: pruned already.
    """

    done = True

    def __init__(self, model: nn.Module) -> None:
        self._places: dict[str, tuple[nn.Module, str]] = {}
        self._gone: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and parameter.is_floating_point():
                zeros = parameter.detach() == 0
                if bool(zeros.any()) and not bool(zeros.all()):
                    owner, _, key = name.rpartition(".")
                    self._places[name], self._gone[name] = (model.get_submodule(owner), key), zeros

    @torch.no_grad()
    def step(self) -> None:
        """An optimiser step was made."""
        for name, (owner, key) in self._places.items():
            parameter: Tensor = getattr(owner, key)
            sharding.local(parameter).masked_fill_(sharding.part_of(self._gone[name], parameter), 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Where zeros are."""
        return {"gone": dict(self._gone)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the zeros of a state.

        Raises:
            PruneError: it belongs to a model with other layers.
        """
        if state["gone"].keys() != self._gone.keys():
            raise PruneError("the state belongs to a model with other layers")
        self._gone = {name: gone.to(self._gone[name].device) for name, gone in state["gone"].items()}
        self.step()

"""Float linear layers: what they are and whether their weight can be quantised."""

from __future__ import annotations

import sys

from torch import Tensor, nn
from torch.nn.utils import parametrize

from tersor.nn.packed_layer import DTYPE_NAMES, DTYPES


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is the Conv1D of transformers, which is not imported for the question."""
    owner = sys.modules.get("transformers.pytorch_utils")
    return owner is not None and isinstance(module, owner.Conv1D)


def float_weight_problem(module: nn.Module) -> str | None:
    """What keeps the weight of a float layer from being quantised; None when nothing does."""
    if "weight" not in module._parameters and not parametrize.is_parametrized(module, "weight"):
        return "its weight is computed by a hook (pruning, weight norm): make it permanent first"
    weight = module.weight
    if not isinstance(weight, Tensor):
        return f"its weight is a {type(weight).__name__}"
    if nn.parameter.is_lazy(weight):
        return "its weight is not initialised yet: run the model once"
    if weight.dtype not in DTYPE_NAMES:
        return f"its weight is {weight.dtype}; supported are {', '.join(DTYPES)}"
    if weight.device.type != "cpu":
        return f"its weight is on {weight.device}; move it to the CPU first"
    if weight.numel() == 0:
        return f"its weight is empty, {list(weight.shape)}"
    return None


def weight_matrix(module: nn.Module) -> Tensor:
    """The weight of a float layer as [out_features, in_features], a view without a graph."""
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    return weight.t() if is_conv1d(module) else weight

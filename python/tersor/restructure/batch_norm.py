"""Batch norms folded into the convolutions and linear layers before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tersor import deviation, modules, observe, structure
from tersor.errors import StructureError
from tersor.selection import matches
from tersor.structure import checks

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

LARGEST_ERROR = 1e-2
"""Relative change of the outputs above which a layer must have done something else than its class."""


@dataclass(frozen=True)
class FoldResult:
    """What :func:`fold_batch_norm` did.

    Attributes:
        folded: name of the batch norm -> name of the layer that now does its work.
        kept: name of another batch norm -> why it stays.
    """

    folded: Mapping[str, str]
    kept: Mapping[str, str]


def fold_batch_norm(
    model: nn.Module, example_inputs: Any, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> FoldResult:
    """Folds every batch norm that directly follows a convolution or linear layer into it, in place.

    With ``s = gamma / sqrt(variance + eps)`` the layer's weights become ``s * w`` and its bias
    ``s * (b - mean) + beta``, for each output channel; the batch norm becomes an ``nn.Identity``. Both are computed in
    double precision and rounded once. So in evaluation each output differs from that of exact arithmetic by at most
    ``(n + 2) u (sum |s w x| + |s (b - mean) + beta|)``, for n products in it and u = 2^-24 (float32), which is what
    the layer's own rounding may cost, too.

    Which follows which is seen in one run: the batch norm must be the only one to read the layer's output, once. The
    outputs on the example input are compared; if they changed, the model is as before.

    Args:
        model: changed in place; used in evaluation from then on.
        example_inputs: a tensor, a tuple or list of arguments, or a mapping of keyword arguments.
        include, exclude: shell wildcards on the names of the layers.

    Raises:
        StructureError: the model fails on the input, or there is no batch norm to fold.
    """
    names = {module: name for name, module in model.named_modules()}
    pairs, expected = _pairs(model, example_inputs)
    subclasses = {names[layer] for layer in pairs.values() if type(layer) not in _LAYERS}
    tied = modules.tied_parameters(model)
    folded: dict[str, str] = {}
    kept: dict[str, str] = {}
    saved = structure.Snapshot(model)
    for norm, name in names.items():
        if not isinstance(norm, _NORMS):
            continue
        layer = pairs.get(norm)
        layer_name = "" if layer is None else names[layer]
        reason = _refusal(layer, layer_name, norm, tied, include, exclude)
        if layer is None or reason is not None:
            kept[name] = reason or "no layer feeds it alone"
            continue
        if layer.bias is None:
            structure.edit(model, "add_bias", {"name": layer_name})
        _fold(layer, norm)
        structure.replace_module(model, name, nn.Identity())
        folded[name] = layer_name
    if not folded:
        raise StructureError(f"no batch norm can be folded. {checks.listed(kept) or 'The model has none'}")
    error = deviation.output_error(observe.run(model, example_inputs, "example_inputs"), expected)
    if error is not None and not error[0] <= LARGEST_ERROR:
        saved.restore()
        raise StructureError(
            f"the outputs change by {error[0]:.3g}; does a layer compute something of its own? Exclude "
            f"{', '.join(sorted(subclasses)) or 'some of ' + ', '.join(folded.values())}"
        )
    return FoldResult(folded, kept)


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often operations read each of some tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: dict[int, tuple[nn.Module, Tensor]] = {}
        self.uses: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for arg in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(arg, Tensor) and id(arg) in self.made:
                self.uses[id(arg)] = self.uses.get(id(arg), 0) + 1
        return func(*args, **(kwargs or {}))


def _pairs(model: nn.Module, inputs: Any) -> tuple[dict[nn.Module, Any], Any]:
    """Batch norm -> the layer whose output it alone reads, where both are called once; and the model's output."""
    mode, calls = _Uses(), dict[nn.Module, int]()
    fed: dict[nn.Module, int] = {}

    def after_layer(module: nn.Module, args: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(output, Tensor):
            mode.made[id(output)] = (module, output)

    def before_norm(module: nn.Module, args: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if args and isinstance(args[0], Tensor):
            fed[module] = id(args[0])

    handles = []
    for module in model.modules():
        if isinstance(module, _LAYERS):
            handles.append(module.register_forward_hook(after_layer))
        elif isinstance(module, _NORMS):
            handles.append(module.register_forward_pre_hook(before_norm))
    try:
        with observe.quiet(model), mode:
            output = observe.call(model, inputs)
    except Exception as error:
        raise StructureError(f"the model failed on the example input: {type(error).__name__}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    returned = {id(tensor) for tensor in observe.floats(output)}
    found = {}
    for norm, key in fed.items():
        if key in mode.made and mode.uses.get(key) == 1 and key not in returned:
            layer, tensor = mode.made[key]
            if calls[norm] == calls[layer] == 1 and not (isinstance(layer, nn.Linear) and tensor.dim() != 2):
                found[norm] = layer
    return found, output


def _refusal(
    layer: nn.Module | None,
    name: str,
    norm: Any,
    tied: Mapping[int, str],
    include: Sequence[str],
    exclude: Sequence[str],
) -> str | None:
    if layer is None:
        return None
    if matches([name], exclude) is not None or (include and matches([name], include) is None):
        return f"{name} is not selected"
    if type(norm) not in _NORMS:
        return f"{type(norm).__name__} is a subclass that may behave differently"
    if norm.running_mean is None:
        return "it has no running statistics"
    if id(layer) in tied or id(norm) in tied:
        return tied.get(id(layer)) or tied[id(norm)]
    if "weight" not in layer._parameters or _hooks(layer) or _hooks(norm):
        return f"hooks hang on {name} or on it"
    return None


def _hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> None:
    """Gives a layer with a bias new weights; the old tensors stay as they are."""
    weight, dtype = layer.weight, layer.weight.dtype
    scale = 1 / torch.sqrt(norm.running_var.double() + norm.eps)  # [channels]
    shift = (layer.bias.double() - norm.running_mean.double()) * scale
    if norm.weight is not None:
        scale, shift = scale * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    shape = [-1, *[1] * (weight.dim() - 1)]
    layer.weight = nn.Parameter((weight.double() * scale.view(shape)).to(dtype), weight.requires_grad)
    layer.bias = nn.Parameter(shift.to(dtype), weight.requires_grad)

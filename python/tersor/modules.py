"""Which layers of a model can be replaced, and how one module takes another's place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

READ_BY_ATTENTION = "nn.MultiheadAttention reads its weight without calling it"
"""Why an out_proj is not replaced by itself."""

HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)


@dataclass(frozen=True)
class Candidate:
    """A linear layer of a model.

    Attributes:
        names: its qualified names, several where one instance is registered several times; ``("",)`` for the root.
        module: the layer itself.
        refusal: why it has to stay as it is; None where it can be replaced.
    """

    names: tuple[str, ...]
    module: nn.Module
    refusal: str | None

    @property
    def name(self) -> str:
        """The first name, or ``(model)`` for the root."""
        return self.names[0] or "(model)"


def linear_types() -> tuple[type[nn.Module], ...]:
    """The exact types that can be replaced: nn.Linear and, where transformers is loaded, its Conv1D."""
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return (nn.Linear,) if conv1d is None else (nn.Linear, conv1d)


def accelerated_types() -> tuple[type[nn.Module], ...]:
    """The replacement layers that exist. None does as long as nobody has imported them."""
    registry = sys.modules.get("tersor.nn.registry")
    return () if registry is None else tuple(registry.REGISTRY.values())


def find_candidates(model: nn.Module, *, untie: bool = False) -> list[Candidate]:
    """Every linear layer of ``model``, in registration order, with the reason why it can't be replaced, if any.

    Args:
        untie: allow layers whose weight or bias is also used by another module; they get a copy of their own.
    """
    names: dict[int, list[str]] = {}
    found: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, linear_types()) and "_tersor_block" not in module.__dict__:  # not within an EncoderBlock
            names.setdefault(id(module), []).append(name)
            found[id(module)] = module
    owned = _read_by_owner(model)
    tied = {} if untie else tied_parameters(model)
    return [
        Candidate(tuple(names[key]), module, owned.get(key) or refusal(module) or tied.get(key))
        for key, module in found.items()
    ]


def refusal(module: nn.Module) -> str | None:
    """Why a linear layer can't be replaced, judged by itself; None where it can."""
    cls = type(module)
    if isinstance(module, accelerated_types()):
        return f"is accelerated already ({cls.__name__})"
    if parametrize.is_parametrized(module):
        return "is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
    weight: Tensor | None = module._parameters.get("weight")
    if isinstance(weight, nn.UninitializedParameter):
        return "is lazy and has no weight yet; run the model once first"
    if cls not in linear_types():
        return f"{cls.__module__}.{cls.__qualname__} is a subclass that may behave differently"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    if weight is None:
        return "its weight is computed by a hook (weight_norm, spectral_norm, a pruning mask); make it permanent first"
    extra = [*module._modules, *module._buffers, *(key for key in module._parameters if key not in ("weight", "bias"))]
    if extra:
        return f"carries more than a weight and a bias: {', '.join(extra)}"
    return _unfit_weight(module)


def _unfit_weight(module: nn.Module) -> str | None:
    for key, parameter in module._parameters.items():
        if parameter is None:
            continue
        if type(parameter) is not nn.Parameter or type(parameter.data) is not Tensor:
            return f"its {key} is a {type(parameter.data).__name__}, not a plain tensor"
        if parameter.layout is not torch.strided:
            return f"its {key} has layout {parameter.layout}"
        if parameter.device.type != "cpu":
            return f"its {key} is on {parameter.device}; only the CPU is supported"
        if parameter.dtype not in DTYPES:
            return f"its {key} is {parameter.dtype}; supported: float32, bfloat16, float16"
        if parameter.numel() == 0:
            return f"its {key} is empty"
        if not bool(torch.isfinite(parameter).all()):
            return f"its {key} holds NaN or infinity"
    return None


def _read_by_owner(model: nn.Module) -> dict[int, str]:
    """Linear layers whose parent reads their weight instead of calling them."""
    peft = getattr(sys.modules.get("peft.tuners.tuners_utils"), "BaseTunerLayer", None)
    reasons: dict[int, str] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            reasons[id(module.out_proj)] = READ_BY_ATTENTION
        elif peft is not None and isinstance(module, peft):
            for part in module.modules():
                reasons[id(part)] = "belongs to a PEFT adapter; call merge_and_unload first"
    return reasons


def tied_parameters(model: nn.Module) -> dict[int, str]:
    """Modules that share memory of their weight or bias with another module: id of the module -> the reason."""
    groups: dict[int, list[tuple[int, str, str, Tensor]]] = {}
    for name, module in model.named_modules():
        for key, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None and not nn.parameter.is_lazy(tensor):
                groups.setdefault(_memory(tensor), []).append((id(module), key, f"{name}.{key}", tensor))
    reasons: dict[int, str] = {}
    for group in groups.values():
        for one, other in combinations(group, 2):
            if one[0] != other[0] and _overlap(one[3], other[3]):
                reasons.setdefault(one[0], f"its {one[1]} is tied to {other[2]}; untie=True gives it its own")
                reasons.setdefault(other[0], f"its {other[1]} is tied to {one[2]}; untie=True gives it its own")
    return reasons


def _plain(tensor: Tensor) -> bool:
    return type(tensor.data) is Tensor and tensor.layout is torch.strided


def _memory(tensor: Tensor) -> int:
    return (tensor.untyped_storage().data_ptr() if _plain(tensor) else 0) or id(tensor)


def _overlap(one: Tensor, other: Tensor) -> bool:
    if one is other or not _plain(one):
        return True
    begin_one, end_one = _span(one)
    begin_other, end_other = _span(other)
    return begin_one < end_other and begin_other < end_one


def _span(tensor: Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = int(tensor.storage_offset()) * tensor.element_size()
    return begin, begin + (int(last) + 1) * tensor.element_size()


def take_over(
    old: nn.Module, new: nn.Module, duplicate: Callable[[Any], Any] = lambda value: value, skip: Collection[str] = ()
) -> None:
    """Give ``new`` what users hung on ``old``: hooks, the training flag, ``bias.requires_grad``, own attributes.

    Hook tables are shared, so a handle taken before still removes its hook, unless ``duplicate`` copies them.
    Attributes in ``skip`` stay behind. A replacement of several layers takes over what is inside ``old``, too.
    """
    if (stand_in := getattr(new, "_stand_in", None)) is not None:
        stand_in(old, duplicate)
    for key in HOOKS:
        hooks, own = old.__dict__[key], new.__dict__[key]
        if own:
            own.update(duplicate(hooks))
        else:
            new.__dict__[key] = duplicate(hooks)
    new._is_full_backward_hook = old._is_full_backward_hook
    new.training = old.training
    bias, own_bias = old._parameters.get("bias"), new._parameters.get("bias")
    if bias is not None and own_bias is not None:
        own_bias.requires_grad_(bias.requires_grad)
    for key, value in old.__dict__.items():
        if key not in new.__dict__ and key not in skip and not isinstance(getattr(type(new), key, None), property):
            new.__dict__[key] = duplicate(value)


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> int:
    """Put ``new`` wherever ``old`` is registered below ``model``; returns in how many places."""
    places = [(parent, key) for parent in model.modules() for key, child in parent._modules.items() if child is old]
    for parent, key in places:
        parent._modules[key] = new
    return len(places)


def sync_fast_paths(model: nn.Module) -> list[str]:
    """Make torch's fused encoder path fit the layers that ``model`` holds now.

    ``nn.TransformerEncoderLayer`` has a fused inference path that reads ``linear1.weight`` and ``linear2.weight``
    instead of calling the layers, and ``nn.TransformerEncoder`` feeds it nested tensors. Where such a layer holds an
    accelerated linear, both are turned off through the attributes that torch checks for it
    (``activation_relu_or_gelu``, ``use_nested_tensor``); where it holds none any more, they get back what they had.
    An encoder with accelerated layers (tersor.nn.EncoderBlock) feeds them plain tensors. Call it after any replacement.
    As always without the fused path, the encoder does not zero padded positions; accelerated layers do.

    Returns:
        The names of the encoders and encoder layers whose fused path is off because of accelerated layers.
    """
    off = []
    for name, module in model.named_modules():
        if isinstance(module, accelerated_types()):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            holds = _holds_accelerated(module)
            _switch(module, "activation_relu_or_gelu", 0, holds)
        elif isinstance(module, nn.TransformerEncoder):
            holds = any(_holds_accelerated(layer) for layer in module.layers)
            blocks = any(isinstance(layer, accelerated_types()) for layer in module.layers)
            _switch(module, "use_nested_tensor", False, holds or blocks)
        else:
            continue
        if holds:
            off.append(name or "(model)")
    return off


def _holds_accelerated(layer: nn.Module) -> bool:
    """Whether an encoder layer calls accelerated layers; one that is accelerated as a whole does not."""
    if isinstance(layer, accelerated_types()):
        return False
    return any(isinstance(getattr(layer, key, None), accelerated_types()) for key in ("linear1", "linear2"))


def _switch(module: nn.Module, attribute: str, value: int, on: bool) -> None:
    saved = module.__dict__.get("_tersor_fast_path")
    if on and saved is None and hasattr(module, attribute):
        module.__dict__["_tersor_fast_path"] = {attribute: getattr(module, attribute)}
        setattr(module, attribute, value)
    elif not on and saved is not None:
        del module.__dict__["_tersor_fast_path"]
        setattr(module, attribute, saved[attribute])


def tensors(module: nn.Module) -> Iterator[Tensor]:
    """Every parameter and buffer of a module once, those that are not saved included, lazy ones left out."""
    for tensor in chain(module.parameters(), module.buffers()):
        if not nn.parameter.is_lazy(tensor):
            yield tensor


def parameter_count(module: nn.Module) -> int:
    """The number of parameter values, shared ones counted once, lazy ones left out."""
    return sum(tensor.numel() for tensor in tensors(module) if isinstance(tensor, nn.Parameter))


def memory_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared memory counted once."""
    sizes = {_memory(tensor): 0 for tensor in tensors(module)}
    for tensor in tensors(module):
        size = tensor.untyped_storage().nbytes() if _plain(tensor) and tensor.device.type != "meta" else 0
        sizes[_memory(tensor)] = max(sizes[_memory(tensor)], size or tensor.numel() * tensor.element_size())
    return sum(sizes.values())

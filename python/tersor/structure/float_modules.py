"""The float modules that a file may ask for: an allow-list of classes, each with a checked JSON configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tersor.checkpoint.strict_json import show
from tersor.errors import StructureError
from tersor.structure import checks

Json = Any
Check = Callable[[Any, str], Any]

MAX_CHILDREN = 32
MAX_DEPTH = 4


@dataclass(frozen=True)
class FloatModule:
    """One class of the allow-list.

    Attributes:
        cls: the class.
        fields: the arguments of its constructor, which are also its attributes, each with a check of its value:
            ``check(value, what)`` returns what the constructor gets or raises StructureError.
    """

    cls: type[nn.Module]
    fields: Mapping[str, Check]

    def build(self, config: Json, what: str) -> nn.Module:
        values = checks.keys(config, set(self.fields), what)
        return self.cls(**{key: check(values[key], f"{key} of {what}") for key, check in self.fields.items()})

    def describe(self, module: nn.Module) -> dict[str, Json]:
        return {key: _json(module, key) for key in self.fields}


FLOAT_MODULES: dict[str, FloatModule] = {}


def register_float_module(name: str, cls: type[nn.Module], fields: Mapping[str, Check]) -> None:
    """Adds a class to the allow-list. Its module must be imported whenever files are read.

    Args:
        name: in files.
        cls: its constructor takes ``fields`` by name, and its instances have attributes of these names (a ``bias``
            of None counts as False, a tensor as True).
        fields: see :class:`FloatModule`; ``counts``, ``flag`` and the other checks of this module serve.

    Raises:
        ValueError: the name belongs to another class.
    """
    owner = FLOAT_MODULES.setdefault(name, FloatModule(cls, fields))
    if owner.cls is not cls:
        raise ValueError(f"the float module {name!r} belongs to {owner.cls.__qualname__} already")


def build_module(description: Json, depth: int = 0) -> nn.Module:
    """A module from ``{"type", "config"}``, or from ``{"type": "Sequential", "children": [...]}``.

    Under ``torch.device("meta")`` it takes no memory.

    Raises:
        StructureError: a type that is not in the allow-list, or a value that is not allowed.
    """
    if not isinstance(description, dict) or not isinstance(description.get("type"), str):
        raise StructureError(f"a module needs a type, got {show(description)}")
    name = description["type"]
    if name == "Sequential":
        children = checks.keys(description, {"type", "children"}, "a Sequential")["children"]
        if not isinstance(children, list) or not 1 <= len(children) <= MAX_CHILDREN or depth >= MAX_DEPTH:
            raise StructureError(f"a Sequential needs 1 to {MAX_CHILDREN} children and {MAX_DEPTH} levels at most")
        return nn.Sequential(*(build_module(child, depth + 1) for child in children))
    if name not in FLOAT_MODULES:
        raise StructureError(f"unknown module type {show(name)}; known: Sequential, {', '.join(sorted(FLOAT_MODULES))}")
    return FLOAT_MODULES[name].build(checks.keys(description, {"type", "config"}, name)["config"], name)


def describe_module(module: nn.Module) -> dict[str, Json]:
    """What :func:`build_module` builds ``module`` from.

    Raises:
        StructureError: its class is not in the allow-list, or it has a setting that a file can't hold.
    """
    if type(module) is nn.Sequential:
        if list(module._modules) != [str(i) for i in range(len(module))]:
            raise StructureError("a file can't hold a Sequential whose children have names")
        return {"type": "Sequential", "children": [describe_module(child) for child in module]}
    for name, known in FLOAT_MODULES.items():
        if known.cls is type(module):
            description = {"type": name, "config": known.describe(module)}
            _check_rebuilds(description, module)
            return description
    raise StructureError(f"a file can't hold a {type(module).__qualname__}; known: {', '.join(sorted(FLOAT_MODULES))}")


def _check_rebuilds(description: dict[str, Json], module: nn.Module) -> None:
    with torch.device("meta"):
        again = build_module(description)
    if _tensors(again) != _tensors(module) or repr(again) != repr(module):
        raise StructureError(f"a file can't hold all settings of {module}")


def _tensors(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict(keep_vars=True).items()}


def _json(module: nn.Module, key: str) -> Json:
    value = getattr(module, key)
    if key in module._parameters:
        return value is not None
    return list(value) if isinstance(value, tuple) else value


# --- Checks of values.


def count(value: Any, what: str) -> int:
    """At least 1."""
    return checks.integer(value, what, 1)


def flag(value: Any, what: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise StructureError(f"{what} must be true or false, got {show(value)}")
    return value


def positive(value: Any, what: str) -> float:
    """A number above 0 and below 1e9."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e9:
        raise StructureError(f"{what} must be a positive number, got {show(value)}")
    return float(value)


def number(value: Any, what: str) -> float:
    """A number of at most 1e9 either way."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not -1e9 < value < 1e9:
        raise StructureError(f"{what} must be a number, got {show(value)}")
    return float(value)


def optional(check: Check) -> Check:
    """None, or what ``check`` accepts."""
    return lambda value, what: None if value is None else check(value, what)


def one_of(*known: str) -> Check:
    """One of these words."""

    def check(value: Any, what: str) -> str:
        if not isinstance(value, str) or value not in known:
            raise StructureError(f"{what} must be one of {', '.join(known)}, got {show(value)}")
        return value

    return check


def sizes(dims: int, low: int = 1, words: Sequence[str] = ()) -> Check:
    """A list of ``dims`` integers of at least ``low`` and below 2**16, or one of ``words``."""

    def check(value: Any, what: str) -> tuple[int, ...] | str:
        if isinstance(value, str) and value in words:
            return value
        if not isinstance(value, list) or len(value) != dims:
            raise StructureError(f"{what} must be a list of {dims} integers, got {show(value)}")
        return tuple(checks.integer(item, what, low, (1 << 16) - 1) for item in value)

    return check


# --- The allow-list.


def _register_torch() -> None:
    for dims, cls in enumerate((nn.Conv1d, nn.Conv2d), 1):
        fields: dict[str, Check] = {
            "in_channels": count,
            "out_channels": count,
            "kernel_size": sizes(dims),
            "stride": sizes(dims),
            "padding": sizes(dims, 0, ("same", "valid")),
            "dilation": sizes(dims),
            "groups": count,
            "bias": flag,
            "padding_mode": one_of("zeros", "reflect", "replicate", "circular"),
        }
        register_float_module(cls.__name__, cls, fields)
    register_float_module("Linear", nn.Linear, {"in_features": count, "out_features": count, "bias": flag})
    padding = optional(lambda value, what: checks.integer(value, what))
    register_float_module(
        "Embedding", nn.Embedding, {"num_embeddings": count, "embedding_dim": count, "padding_idx": padding}
    )
    norm: dict[str, Check] = {
        "num_features": count,
        "eps": positive,
        "momentum": optional(number),
        "affine": flag,
        "track_running_stats": flag,
    }
    for name in ("BatchNorm1d", "BatchNorm2d"):
        register_float_module(name, getattr(nn, name), norm)
    register_float_module("GELU", nn.GELU, {"approximate": one_of("none", "tanh")})
    for name in ("Identity", "ReLU", "ReLU6", "SiLU", "Hardswish", "Sigmoid", "Tanh"):
        register_float_module(name, getattr(nn, name), {})


_register_torch()

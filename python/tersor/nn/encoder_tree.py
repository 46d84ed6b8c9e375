"""Copies of a tree of modules in which something else stands in the place of some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tersor.modules import HOOKS

OWN = frozenset(nn.Module().__dict__)
"""What every module has in its __dict__."""

Make = Callable[[str, nn.Module], "nn.Module | None"]
Duplicate = Callable[[Any], Any]


def rebuilt(module: nn.Module, make: Make, duplicate: Duplicate, hooks: bool, path: str = "") -> nn.Module:
    """A copy of a tree of modules, in which `make(path, module)` may put something else in a module's place.

    `duplicate` is applied to attributes and hook tables; without `hooks` the copies have none.
    """
    made = make(path, module)
    if made is None:
        made = type(module).__new__(type(module))
        nn.Module.__init__(made)
        made._parameters.update(module._parameters)
        made._buffers.update(module._buffers)
    copy_attributes(module, made, duplicate)
    if hooks:
        for key in HOOKS:
            made.__dict__[key] = duplicate(module.__dict__[key])
    for key, child in module._modules.items():
        below = f"{path}.{key}" if path else key
        made._modules[key] = None if child is None else rebuilt(child, make, duplicate, hooks, below)
    return made


def copy_attributes(old: nn.Module, new: nn.Module, duplicate: Duplicate) -> None:
    """Give `new` the attributes of `old` that it does not have, and its training flag."""
    new.training = old.training
    for key, value in old.__dict__.items():
        if key not in OWN and key not in new.__dict__ and not key.startswith("_tersor"):
            new.__dict__[key] = duplicate(value)

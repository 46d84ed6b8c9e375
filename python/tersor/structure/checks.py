"""Checks of values in an edit's configuration, which may come from a hostile file."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import nn

from tersor.checkpoint.strict_json import show
from tersor.errors import StructureError

MAX_INT = 1 << 31


def keys(config: object, expected: set[str], what: str = "the configuration") -> dict[str, Any]:
    """``config``, an object of exactly these keys."""
    if not isinstance(config, dict) or config.keys() != expected:
        got = sorted(config) if isinstance(config, dict) else config
        raise StructureError(f"{what} needs exactly the keys {sorted(expected)}, got {show(got)}")
    return config


def integer(value: object, what: str, low: int = 0, high: int = MAX_INT - 1) -> int:
    """An integer within bounds; True and False are none."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise StructureError(f"{what} must be an integer in [{low}, {high}], got {show(value)}")
    return value


def indices(value: object, what: str, size: int) -> list[int]:
    """A rising list of integers in [0, size)."""
    if not isinstance(value, list) or len(value) > size:
        raise StructureError(f"{what} must be a list of at most {size} integers, got {show(value)}")
    for item in value:
        integer(item, what, 0, size - 1)
    if any(one >= other for one, other in pairwise(value)):
        raise StructureError(f"{what} must rise, got {show(value)}")
    return value


def mapping(value: object, what: str) -> Mapping[str, Any]:
    """An object with any keys."""
    if not isinstance(value, dict):
        raise StructureError(f"{what} must be an object, got {show(value)}")
    return value


def listed(reasons: Mapping[str, str], most: int = 5) -> str:
    """The first few of some reasons by name, for a message."""
    found = [f"{name}: {reason}" for name, reason in reasons.items()]
    more = f"; and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(found[:most]) + more


def submodule(model: nn.Module, name: object) -> nn.Module:
    """The module of this name inside ``model``; "" is the model."""
    module: nn.Module | None = model
    for part in name.split(".") if isinstance(name, str) and name else ():
        module = None if module is None else module._modules.get(part)
    if module is None or not isinstance(name, str):
        raise StructureError(f"the model has no module {show(name)}")
    return module

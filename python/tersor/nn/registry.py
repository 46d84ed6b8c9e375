"""The kinds of replacement layers. A new layer is one file with @register and one import line in tersor/nn."""

from __future__ import annotations

from typing import TypeVar

from tersor.nn.packed_layer import PackedLayer

REGISTRY: dict[str, type[PackedLayer]] = {}

LayerT = TypeVar("LayerT", bound=PackedLayer)


def register(cls: type[LayerT]) -> type[LayerT]:
    """Class decorator: adds `cls` under its `kind`.

    Raises:
        ValueError: the kind is empty or belongs to another class.
    """
    kind = getattr(cls, "kind", "")
    if not kind:
        raise ValueError(f"{cls.__qualname__} has no `kind`")
    owner = REGISTRY.setdefault(kind, cls)
    if owner is not cls:
        raise ValueError(f"layer kind {kind!r} belongs to {owner.__module__}.{owner.__qualname__} already")
    return cls

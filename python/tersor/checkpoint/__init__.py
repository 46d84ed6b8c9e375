"""Saving and loading models: one file, a safetensors container with a manifest, specified in docs/format.md.

Names are imported on first use, so that `inspect` works without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tersor.checkpoint.inspection import FileInfo, LayerInfo, TensorInfo, inspect
    from tersor.checkpoint.reader import load
    from tersor.checkpoint.rebuild import parameters_on_meta
    from tersor.checkpoint.writer import save

__all__ = ["FileInfo", "LayerInfo", "TensorInfo", "inspect", "load", "parameters_on_meta", "save"]

_HOMES: Final = {
    "FileInfo": "inspection",
    "LayerInfo": "inspection",
    "TensorInfo": "inspection",
    "inspect": "inspection",
    "load": "reader",
    "parameters_on_meta": "rebuild",
    "save": "writer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

"""Makes trained PyTorch models smaller and faster on the machines where they are deployed.

Names are imported on first use: `import tersor` is cheap, and `tersor.kernels` works without importing torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tersor import (
        checkpoint,
        distill,
        errors,
        factorize,
        kernels,
        nn,
        ops,
        prune,
        recipe,
        report,
        restructure,
        scale,
        steps,
        structure,
        training,
    )
    from tersor.benchmark import benchmark
    from tersor.checkpoint import inspect, load, save
    from tersor.compress import CompressionResult, compress
    from tersor.doctor import doctor
    from tersor.errors import (
        CheckpointError,
        DistillError,
        FactorizeError,
        NativeError,
        PruneError,
        RecipeError,
        StructureError,
        SwapError,
        TersorError,
        TrainError,
    )
    from tersor.prune import prune_channels
    from tersor.recipe import Recipe
    from tersor.report import Report
    from tersor.swap import SwapReport, restore, swap
    from tersor.tune import tune

    __version__: str

__all__ = [
    "CheckpointError",
    "CompressionResult",
    "DistillError",
    "FactorizeError",
    "NativeError",
    "PruneError",
    "Recipe",
    "RecipeError",
    "Report",
    "StructureError",
    "SwapError",
    "SwapReport",
    "TersorError",
    "TrainError",
    "benchmark",
    "checkpoint",
    "compress",
    "distill",
    "doctor",
    "errors",
    "factorize",
    "inspect",
    "kernels",
    "load",
    "nn",
    "ops",
    "prune",
    "prune_channels",
    "recipe",
    "report",
    "restore",
    "restructure",
    "save",
    "scale",
    "steps",
    "structure",
    "swap",
    "training",
    "tune",
]

# Where each public name lives: a module itself, or a name inside one.
_MODULES: Final = frozenset(
    {
        "checkpoint",
        "distill",
        "errors",
        "factorize",
        "kernels",
        "nn",
        "ops",
        "prune",
        "recipe",
        "report",
        "restructure",
        "scale",
        "steps",
        "structure",
        "training",
    }
)
_HOMES: Final[dict[str, str]] = {
    "CheckpointError": "errors",
    "CompressionResult": "compress",
    "DistillError": "errors",
    "FactorizeError": "errors",
    "NativeError": "errors",
    "PruneError": "errors",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Report": "report",
    "StructureError": "errors",
    "SwapError": "errors",
    "SwapReport": "swap",
    "TersorError": "errors",
    "TrainError": "errors",
    "benchmark": "benchmark",
    "compress": "compress",
    "doctor": "doctor",
    "inspect": "checkpoint",
    "load": "checkpoint",
    "prune_channels": "prune",
    "restore": "swap",
    "save": "checkpoint",
    "swap": "swap",
    "tune": "tune",
}


class _Package(ModuleType):
    """`tersor.swap` is the function even after somebody imported the module tersor/swap.py, and so for the others."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _HOMES):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    value: Any
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version(__name__)
    else:
        raise AttributeError(f"module 'tersor' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})

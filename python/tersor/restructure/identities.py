"""Modules that do nothing in evaluation: removed where that is safe."""

from __future__ import annotations

from typing import Any

from torch import nn

from tersor import structure
from tersor.structure.identities import does_nothing


def remove_identities(model: nn.Module) -> list[str]:
    """Removes what does nothing in evaluation from ``model``, in place: ``nn.Identity`` and dropout.

    Out of an ``nn.Sequential`` they are taken, and its other modules numbered anew, unless hooks hang on them; anywhere
    else a dropout becomes an ``nn.Identity``, since the code around may call it. The outputs in evaluation stay the
    same bit for bit; training is without dropout from then on.

    Returns:
        The names that the modules had.
    """
    names = []
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Sequential:
            continue
        drop = [index for index, child in enumerate(module) if does_nothing(child) and not _hooked(child)]
        if 0 < len(drop) < len(module):
            names += [f"{name}.{key}" if name else key for i, key in enumerate(module._modules) if i in drop]
            structure.edit(model, "drop_identities", {"stack": name, "drop": drop})
    for name, module in list(model.named_modules()):
        if name and does_nothing(module) and not isinstance(module, nn.Identity) and not _hooked(module):
            structure.replace_module(model, name, nn.Identity())
            names.append(name)
    return names


def _hooked(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)

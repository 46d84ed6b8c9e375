"""The edit that takes modules out of an ``nn.Sequential`` that do nothing in evaluation."""

from __future__ import annotations

from typing import Any

from torch import nn

from tersor.checkpoint.strict_json import show
from tersor.errors import StructureError
from tersor.structure import checks
from tersor.structure.registry import register_edit

_IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def does_nothing(module: nn.Module | None) -> bool:
    """Whether a module gives back its input in evaluation."""
    return type(module) in _IDLE


@register_edit("drop_identities")
def drop_identities(model: nn.Module, config: dict[str, Any]) -> None:
    """``{"stack": NAME, "drop": [index, ...]}``: identities and dropouts, but not all modules, leave a Sequential."""
    checks.keys(config, {"stack", "drop"})
    name = config["stack"]
    stack = checks.submodule(model, name)
    if not isinstance(stack, nn.Sequential):
        raise StructureError(f"{show(name)} is a {type(stack).__name__}, not an nn.Sequential")
    dropped = set(checks.indices(config["drop"], "drop", len(stack)))
    if not 0 < len(dropped) < len(stack):
        raise StructureError(f"{len(dropped)} of the {len(stack)} modules of {show(name)}: drop some, and not all")
    if not all(does_nothing(child) for index, child in enumerate(stack) if index in dropped):
        raise StructureError(f"a module of {show(name)} does something, so it can't be dropped")
    numbered = list(stack._modules) == [str(index) for index in range(len(stack))]
    kept = [item for index, item in enumerate(stack._modules.items()) if index not in dropped]
    stack._modules = {str(new) if numbered else key: child for new, (key, child) in enumerate(kept)}

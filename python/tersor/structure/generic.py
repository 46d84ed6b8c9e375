"""The edits that serve many: another module in a module's place, and smaller integers in attributes."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from tersor.checkpoint.strict_json import show
from tersor.errors import StructureError
from tersor.structure import checks
from tersor.structure.float_modules import build_module
from tersor.structure.registry import register_edit
from tersor.structure.replace import install


@register_edit("replace_module")
def replace(model: nn.Module, config: dict[str, Any]) -> None:
    """``{"name": NAME, "module": DESCRIPTION}``, see :func:`tersor.structure.build_module`.

    The new module has fresh values, in the dtype and on the device of the old one.
    """
    checks.keys(config, {"name", "module"})
    old = checks.submodule(model, config["name"])
    new = build_module(config["module"])
    like = next((tensor for tensor in modules_tensors(old) if tensor.is_floating_point()), None)
    if like is not None and torch.get_default_device().type != "meta":
        new = new.to(device=like.device, dtype=like.dtype)
    install(model, old, new)


@register_edit("set_attributes")
def set_attributes(model: nn.Module, config: dict[str, Any]) -> None:
    """``{"modules": {NAME: {ATTRIBUTE: value}}, "config": {KEY: value}}``: integers that get smaller.

    ``modules`` are attributes of modules, ``config`` those of ``model.config``, as models of transformers have it.
    Each must be there already as an integer, and may only become smaller, down to 0.
    """
    checks.keys(config, {"modules", "config"})
    changes: list[tuple[Any, str, int]] = []
    for name, attributes in checks.mapping(config["modules"], "modules").items():
        module = checks.submodule(model, name)
        changes += [_change(module, show(name), *item) for item in checks.mapping(attributes, show(name)).items()]
    for key, value in checks.mapping(config["config"], "config").items():
        changes.append(_change(model_config(model), "the model's config", key, value))
    for owner, key, value in changes:
        setattr(owner, key, value)


@register_edit("add_bias")
def add_bias(model: nn.Module, config: dict[str, Any]) -> None:
    """``{"name": NAME}``: a linear or convolution layer without a bias gets one, of zeros."""
    name = checks.keys(config, {"name"})["name"]
    module = checks.submodule(model, name)
    types = (nn.Linear, nn.Conv1d, nn.Conv2d)
    weight = module._parameters.get("weight")
    if not isinstance(module, types) or weight is None or module._parameters.get("bias", weight) is not None:
        raise StructureError(f"{show(name)} is no linear or convolution layer without a bias")
    on_meta = torch.get_default_device().type == "meta"
    device = torch.device("meta") if on_meta else weight.device
    module.bias = nn.Parameter(torch.zeros(len(weight), dtype=weight.dtype, device=device), weight.requires_grad)


def _change(owner: Any, what: str, key: str, value: Any) -> tuple[Any, str, int]:
    old = vars(owner).get(key) if owner is not None and not key.startswith("_") else None
    if not isinstance(old, int) or isinstance(old, bool):
        raise StructureError(f"{what} has no integer attribute {show(key)}")
    return owner, key, checks.integer(value, f"{show(key)} of {what}", 0, max(old, 0))


def model_config(model: nn.Module) -> Any:
    """The configuration of a transformers model, or None."""
    transformers = sys.modules.get("transformers")
    config = model.__dict__.get("config")
    return config if transformers is not None and isinstance(config, transformers.PretrainedConfig) else None


def modules_tensors(module: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]

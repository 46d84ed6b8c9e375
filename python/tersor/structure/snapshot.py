"""A model's structure as it was, to go back to it: which modules, tensors and attributes it is made of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_TABLES = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


class Snapshot:
    """Remembers what every module of a model holds, without copying a tensor.

    :meth:`restore` puts the same objects back. Tensors whose values were changed in place stay changed, so edits make
    new tensors. The attributes of ``config`` objects, as models of transformers have them, are remembered too.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, _copy(module)) for module in model.modules()]
        configs = {id(config): config for module, _ in self._modules for config in _configs(module)}
        self._configs = [(config, dict(vars(config))) for config in configs.values()]

    def restore(self) -> None:
        """Makes every module what it was."""
        for module, state in self._modules:
            module.__dict__.clear()
            module.__dict__.update(_copied_tables(state))
        for config, state in self._configs:
            vars(config).clear()
            vars(config).update(state)


def _copy(module: nn.Module) -> dict[str, Any]:
    return _copied_tables(module.__dict__)


def _copied_tables(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value.copy() if key in _TABLES else value for key, value in state.items()}


def _configs(module: nn.Module) -> list[Any]:
    """The module's configuration and those inside it, such as ``text_config``."""
    config = module.__dict__.get("config")
    if not hasattr(config, "__dict__") or isinstance(config, (nn.Module, Tensor, type)):
        return []
    return [config, *(value for value in vars(config).values() if type(value).__name__.endswith("Config"))]

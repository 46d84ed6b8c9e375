"""Putting a float module in another's place, as a recorded edit."""

from __future__ import annotations

from torch import nn

from tersor import modules
from tersor.errors import StructureError
from tersor.structure import checks
from tersor.structure.float_modules import describe_module
from tersor.structure.registry import describe_origin, record
from tersor.structure.snapshot import Snapshot


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Puts ``new``, with its weights, wherever the module ``name`` is registered, and records it.

    Args:
        model: changed in place.
        name: qualified name of a module inside ``model``.
        new: made of modules of the allow-list (``FLOAT_MODULES``) and ``nn.Sequential``.

    Raises:
        StructureError: no such module, or a file can't hold ``new``.
    """
    old = checks.submodule(model, name)
    config = {"name": name, "module": describe_module(new)}
    described = describe_origin(model)
    saved = Snapshot(model)
    try:
        install(model, old, new)
        record(model, "replace_module", config, described)
    except BaseException:
        saved.restore()
        raise


def install(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts ``new`` in every place of ``old``."""
    if old is model:
        raise StructureError("the model itself can't be replaced, only modules inside it")
    new.train(old.training)
    modules.replace(model, old, new)

"""The kinds of edits, and the list of those that made a model what it is."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from tersor.checkpoint.manifest import MAX_EDITS
from tersor.checkpoint.strict_json import clip, show
from tersor.errors import StructureError, TersorError
from tersor.structure.snapshot import Snapshot

Json = Any
Build = Callable[[nn.Module, dict[str, Json]], None]

EDITS: dict[str, Build] = {}

# Imported before a kind is looked up; each registers its kinds.
_HOMES = (
    "tersor.structure.generic",
    "tersor.structure.narrow",
    "tersor.structure.blocks",
    "tersor.structure.identities",
    "tersor.factorize.factored_linear",
    "tersor.convnet.network",
)

_RECORDS = "_tersor_edits"
_ORIGIN = "_tersor_origin"


def register_edit(kind: str) -> Callable[[Build], Build]:
    """Decorator: makes ``build(model, config)`` known as ``kind``. Its module is listed in ``_HOMES``, to be found.

    ``build`` changes the structure of ``model`` in place. It checks every value of ``config``, which may come from a
    hostile file, raises StructureError for what it does not accept, and then allocates no more than the model had:
    under ``torch.device("meta")`` nothing but meta tensors. It must not change values of tensors in place.

    Raises:
        ValueError: the kind is no identifier, or belongs to another function.
    """

    def add(build: Build) -> Build:
        if not kind.isidentifier() or EDITS.get(kind, build) is not build:
            raise ValueError(f"the edit {build.__qualname__} needs a kind of its own, got {kind!r}")
        EDITS[kind] = build
        return build

    return add


def edit(model: nn.Module, kind: str, config: Mapping[str, Json]) -> None:
    """Applies one edit to ``model`` in place and records it. If it fails, the model is as before.

    Args:
        kind: one of ``EDITS``.
        config: plain JSON, see the function of that kind.

    Raises:
        StructureError: an unknown kind, a configuration that does not fit the model, or too many edits.
    """
    plain = _plain(kind, config)
    saved = Snapshot(model)
    described = describe_origin(model)
    try:
        _apply(model, kind, plain)
        record(model, kind, plain, described)
    except BaseException:
        saved.restore()
        raise


def _apply(model: nn.Module, kind: str, config: dict[str, Json]) -> None:
    build = _build(kind)
    try:
        build(model, copy.deepcopy(config))
    except StructureError:
        raise
    except Exception as error:  # whatever a module raises for values that it does not like
        raise StructureError(f"{type(error).__name__}: {clip(str(error))}") from error


def record(model: nn.Module, kind: str, config: Mapping[str, Json], described: Json) -> None:
    """Notes an edit that was applied already. ``described`` is how to build the model that it was applied to first."""
    done = records(model)
    if len(done) >= MAX_EDITS:
        raise StructureError(f"a model can have {MAX_EDITS} edits at most")
    if not done:
        model.__dict__[_ORIGIN] = described
    model.__dict__[_RECORDS] = [*done, {"kind": kind, "config": dict(config)}]


def records(model: nn.Module) -> list[dict[str, Json]]:
    """The edits of a model in their order, as ``{"kind", "config"}``; a copy."""
    found: list[dict[str, Json]] = copy.deepcopy(model.__dict__.get(_RECORDS, []))
    return found


def origin(model: nn.Module) -> Json:
    """How to build the model that was edited: a :class:`tersor.checkpoint.manifest.Rebuild`, or None.

    For a model without edits that is the model itself.
    """
    return model.__dict__.get(_ORIGIN) if _RECORDS in model.__dict__ else describe_origin(model)


def foreign_records(model: nn.Module) -> list[str]:
    """The names of modules inside ``model`` that were edited on their own, which a file of the whole can't say."""
    return [name for name, module in model.named_modules() if name and module.__dict__.get(_RECORDS)]


def replay(model: nn.Module, edits: Sequence[Mapping[str, Json]]) -> None:
    """Applies recorded edits to a fresh float model, all or none, and records them.

    It makes the structure; new modules have fresh values. A model that has these very edits already is left alone.
    Inside ``torch.device("meta")`` nothing is allocated: whatever an edit makes or narrows is on meta.

    Raises:
        StructureError: a record is invalid or does not fit the model, there are too many, or the model has others.
    """
    done = records(model)
    if done == [dict(item) for item in edits]:
        return
    if done:
        raise StructureError("the model has edits of its own already; give a fresh float model")
    if len(edits) > MAX_EDITS:
        raise StructureError(f"{len(edits)} edits; at most {MAX_EDITS} are allowed")
    saved, described = Snapshot(model), describe_origin(model)
    try:
        for position, item in enumerate(edits):
            _replay_one(model, item, position, described)
    except BaseException:
        saved.restore()
        raise


def _replay_one(model: nn.Module, item: Mapping[str, Json], position: int, described: Json) -> None:
    if not isinstance(item, Mapping) or item.keys() != {"kind", "config"}:
        raise StructureError(f"edit {position} needs exactly the fields kind and config")
    kind = item["kind"]
    plain = _plain(kind, item["config"])
    try:
        _apply(model, kind, plain)
    except StructureError as error:
        raise StructureError(f"edit {position} ({clip(str(kind))}): {error}") from error.__cause__
    record(model, kind, plain, described)


def _build(kind: str) -> Build:
    for home in _HOMES:
        importlib.import_module(home)
    if not isinstance(kind, str) or kind not in EDITS:
        raise StructureError(f"unknown edit {show(kind)}; known: {', '.join(sorted(EDITS))}")
    return EDITS[kind]


def _plain(kind: str, config: Mapping[str, Json]) -> dict[str, Json]:
    try:
        plain = json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise StructureError(f"the configuration of the edit {show(kind)} is not plain JSON: {error}") from None
    if not isinstance(plain, dict):
        raise StructureError(f"the configuration of the edit {show(kind)} is not an object")
    return plain


def describe_origin(model: nn.Module) -> Json:
    """How a file would say to build ``model`` as it is now, or None."""
    from tersor.checkpoint.rebuild import describe

    try:
        return describe(model)
    except TersorError:
        return None

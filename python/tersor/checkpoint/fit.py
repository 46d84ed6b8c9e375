"""Does a file fit a model? Everything is decided here, by names, shapes and dtypes, before the model is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tersor.checkpoint.container import TensorEntry
from tersor.checkpoint.manifest import LayerEntry, Manifest
from tersor.checkpoint.strict_json import clip, show
from tersor.checkpoint.tensors import TORCH_DTYPES
from tersor.errors import CheckpointError
from tersor.nn.registry import REGISTRY

_LISTED = 10


@dataclass(frozen=True)
class Slot:
    """Where a tensor lives in a model."""

    module: nn.Module
    key: str
    tensor: Tensor
    is_parameter: bool


@dataclass
class Fit:
    """Where the contents of a file go. ``slots`` is by tensor name, ``parents`` by place of a layer."""

    slots: dict[str, Slot] = field(default_factory=dict)
    parents: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    replaced: dict[str, nn.Module] = field(default_factory=dict)
    buffers: dict[str, Slot] = field(default_factory=dict)


def fit(model: nn.Module, manifest: Manifest, entries: Mapping[str, TensorEntry]) -> Fit:
    """Finds the place of every layer and tensor of a file in a fresh float model.

    Raises:
        CheckpointError: a layer or tensor has no place, a place gets nothing, or a shape or dtype differs.
    """
    places = {place: layer for layer, place in manifest.layer_places()}
    found = _find(model, places)
    _check_layers(found, places)
    stored = {name: name for name in manifest.tensors} | dict(manifest.aliases)
    _check_complete(
        "tensors", missing=stored.keys() - found.slots.keys(), unexpected=found.slots.keys() - stored.keys()
    )
    for name, source in stored.items():
        _check_slot(name, found.slots[name], entries[source])
        if found.slots[name].is_parameter != found.slots[source].is_parameter:
            raise CheckpointError(f"{show(name)} and {show(source)} are one tensor, but a parameter and a buffer")
    _check_sharing({name: (id(slot.module), slot.key) for name, slot in found.slots.items()}, stored)
    owners = {place: layer.name for place, layer in places.items()}
    _check_sharing({place: (id(parent), key) for place, (parent, key) in found.parents.items()}, owners)
    return found


def check_device(found: Fit) -> None:
    """Raises CheckpointError for a tensor neither on cpu nor on meta, or a buffer that would stay without values."""
    for name, slot in (found.slots | found.buffers).items():
        if slot.tensor.device.type not in ("cpu", "meta"):
            raise CheckpointError(f"the model's {name} is on {slot.tensor.device}; load into a model on cpu or meta")
    if empty := [name for name, slot in found.buffers.items() if slot.tensor.is_meta]:
        raise CheckpointError(
            f"the model has buffers on meta that no file holds: {_listed(empty)}; build it with "
            "`with tersor.checkpoint.parameters_on_meta():` instead of torch.device('meta')"
        )


def _find(model: nn.Module, places: Mapping[str, LayerEntry]) -> Fit:
    found = Fit()

    def visit(module: nn.Module, name: str) -> None:
        if name in places:
            found.replaced[name] = module
            return
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                slots = found.buffers if key in module._non_persistent_buffers_set else found.slots
                slots[_join(name, key)] = Slot(module, key, tensor, key in module._parameters)
        for key, child in module._modules.items():
            if child is not None:
                found.parents[_join(name, key)] = (module, key)
                visit(child, _join(name, key))

    visit(model, "")
    found.parents = {place: parent for place, parent in found.parents.items() if place in places}
    return found


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _check_layers(found: Fit, places: Mapping[str, LayerEntry]) -> None:
    if absent := places.keys() - found.replaced.keys():
        raise CheckpointError(f"the model has no modules for the layers {_listed(absent)}")
    for place, layer in places.items():
        problem = REGISTRY[layer.kind].place_problem(layer.config, found.replaced[place])
        if problem is not None:
            raise CheckpointError(f"the layer {show(place)} {clip(problem)}")


def _check_slot(name: str, slot: Slot, entry: TensorEntry) -> None:
    dtype = TORCH_DTYPES[entry.dtype]
    if is_lazy(slot.tensor):
        raise CheckpointError(f"the model's {name} is not initialised yet; run the model once first")
    if tuple(slot.tensor.shape) != entry.shape:
        raise CheckpointError(
            f"{show(name)} is {list(entry.shape)} in the file and {list(slot.tensor.shape)} in the model"
        )
    if slot.tensor.dtype != dtype and not (slot.tensor.is_floating_point() and dtype.is_floating_point):
        raise CheckpointError(f"{show(name)} is {dtype} in the file and {slot.tensor.dtype} in the model")


def _check_sharing(slots: Mapping[str, tuple[int, str]], sources: Mapping[str, str]) -> None:
    """A place that the model has under two names can take only one thing."""
    first: dict[tuple[int, str], str] = {}
    for name, slot in slots.items():
        other = first.setdefault(slot, name)
        if sources[other] != sources[name]:
            raise CheckpointError(f"{show(other)} and {show(name)} are one in the model and two in the file")


def _check_complete(what: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    parts = []
    if names := sorted(unexpected):
        parts.append(f"missing in the file: {_listed(names)}")
    if names := sorted(missing):
        parts.append(f"unknown to the model: {_listed(names)}")
    if parts:
        raise CheckpointError(f"the {what} of the file and the model differ; {'; '.join(parts)}")


def _listed(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(map(show, listed[:_LISTED])) + more

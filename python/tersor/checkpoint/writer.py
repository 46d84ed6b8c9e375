"""Saving a model: layers are unpacked and written one at a time, so memory grows by no more than one of them."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from torch import Tensor, nn

from tersor import __version__, structure
from tersor.checkpoint.atomic import atomic_file, write_at
from tersor.checkpoint.container import TensorEntry, header_bytes, is_name, layout
from tersor.checkpoint.manifest import Edit, LayerEntry, Manifest, to_metadata
from tersor.checkpoint.strict_json import show
from tersor.checkpoint.tensors import DTYPE_NAMES, specification, write_tensor
from tersor.errors import CheckpointError, NativeError, TersorError
from tersor.nn.packed_layer import PackedLayer
from tersor.nn.registry import REGISTRY

Specification = tuple[str, tuple[int, ...]]  # dtype name, shape


@dataclass
class _Contents:
    """What a model holds, in the order of its modules. Keys are the names that a state dict has."""

    layers: dict[str, PackedLayer] = field(default_factory=dict)
    layer_aliases: dict[str, list[str]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, str] = field(default_factory=dict)
    specifications: dict[str, Specification] = field(default_factory=dict)


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Saves a model, with or without accelerated layers, as one file (docs/format.md).

    The file is a safetensors container with the layers' canonical tensors (so it opens on any CPU) and a manifest.
    Tied tensors and shared modules are stored once. Non-persistent buffers are not stored. The same model gives the
    same bytes. The save is atomic: ``path`` holds its old content, or nothing, until the whole file is on the disk.

    Raises:
        CheckpointError: a tensor that a file cannot hold, a module with a state of its own beside its tensors,
            or a path that cannot be written (the OSError is the cause).
    """
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"tersor.save takes a torch.nn.Module, got {type(model).__name__}")
    if inside := structure.foreign_records(model):
        raise CheckpointError(
            f"the structure of {show(inside[0])} was edited on its own; edit the whole model that is saved"
        )
    contents = _collect(model)
    layers = {
        name: LayerEntry(name, layer.kind, layer.config(), tuple(contents.layer_aliases[name]))
        for name, layer in contents.layers.items()
    }
    manifest = Manifest(
        layers=tuple(layers.values()),
        tensors=tuple(contents.tensors),
        aliases=contents.aliases,
        buffers=contents.buffers,
        model_class=f"{type(model).__module__}.{type(model).__qualname__}",
        rebuild=structure.origin(model),
        edits=tuple(Edit(**record) for record in structure.records(model)),
    )
    for name, entry in layers.items():
        for key, (dtype, shape) in type(contents.layers[name]).expected_tensors(entry.config).items():
            contents.specifications[entry.tensor_name(key)] = (DTYPE_NAMES[dtype], tuple(shape))
    _check_names(contents)
    entries = layout(contents.specifications)
    head = header_bytes(to_metadata(manifest, __version__), entries)
    try:
        with atomic_file(Path(path)) as file:
            write_at(file, 0, memoryview(head))
            _write_data(file, len(head), {entry.name: entry for entry in entries}, contents, layers)
    except OSError as error:
        raise CheckpointError(f"cannot save to {os.fspath(path)}: {error.strerror or error}") from error


def _write_data(
    file: FileIO,
    data_start: int,
    entries: dict[str, TensorEntry],
    contents: _Contents,
    layers: dict[str, LayerEntry],
) -> None:
    for name, tensor in contents.tensors.items():
        write_tensor(file, data_start, entries[name], tensor)
    for name, layer in contents.layers.items():
        canonical = _canonical(name, layer)
        for key in list(canonical):
            tensor = canonical.pop(key)
            full = layers[name].tensor_name(key)
            if contents.specifications.get(full) != specification(tensor, full):
                raise CheckpointError(f"the layer {show(name)} gives a tensor {show(key)} that its config does not")
            write_tensor(file, data_start, entries[full], tensor)


def _canonical(name: str, layer: PackedLayer) -> dict[str, Tensor]:
    try:
        return layer.canonical_tensors()
    except NativeError:
        raise
    except TersorError as error:
        raise CheckpointError(f"the layer {show(name)}: {error}") from error


def _collect(model: nn.Module) -> _Contents:
    contents = _Contents()
    owners: dict[Hashable, str] = {}
    for name, module in _walk(model, ""):
        if isinstance(module, PackedLayer):
            owner = owners.setdefault(id(module), name)
            if owner == name:
                contents.layers[name] = module
            contents.layer_aliases.setdefault(owner, []).extend([] if owner == name else [name])
            continue
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                _add_tensor(contents, owners, module, name, key, tensor)
        _check_module(module, name)
    return contents


def _add_tensor(
    contents: _Contents, owners: dict[Hashable, str], module: nn.Module, name: str, key: str, tensor: Tensor
) -> None:
    full = f"{name}.{key}" if name else key
    if key in module._non_persistent_buffers_set:
        if tensor.dtype in DTYPE_NAMES:
            contents.buffers[full] = DTYPE_NAMES[tensor.dtype]
        return
    described = specification(tensor, full)
    owner = owners.setdefault(_identity(tensor, key in module._parameters), full)
    if owner != full:
        contents.aliases[full] = owner
        return
    contents.tensors[full] = tensor
    contents.specifications[full] = described


def _walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Every module with every name that it has; accelerated layers are not entered."""
    yield name, module
    if isinstance(module, PackedLayer):
        return
    for key, child in module._modules.items():
        if child is not None:
            yield from _walk(child, f"{name}.{key}" if name else key)


def _identity(tensor: Tensor, parameter: bool) -> Hashable:
    """Equal for tensors that are one: the same memory read the same way, and both parameters or both buffers."""
    if not tensor.numel():
        return id(tensor)
    return parameter, tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def _check_module(module: nn.Module, name: str) -> None:
    cls = type(module)
    own_state = cls.get_extra_state is not nn.Module.get_extra_state
    if own_state or cls._save_to_state_dict is not nn.Module._save_to_state_dict:
        raise CheckpointError(
            f"the module {show(name)} ({cls.__name__}) keeps a state of its own beside its parameters and buffers, "
            "which a file cannot hold"
        )


def _check_names(contents: _Contents) -> None:
    for name, layer in contents.layers.items():
        if REGISTRY.get(layer.kind) is not (type(layer).registered_as or type(layer)):
            raise CheckpointError(f"the layer {show(name)} is a {type(layer).__name__}, which is not registered")
    places = (place for aliases in contents.layer_aliases.values() for place in aliases)
    for name in (*contents.specifications, *contents.aliases, *contents.buffers, *places):
        if not is_name(name):
            raise CheckpointError(f"a file cannot hold a tensor with the name {show(name)}")

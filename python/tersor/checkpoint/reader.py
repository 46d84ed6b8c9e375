"""Loading: the whole file is checked, and read layer by layer, before the model is touched."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tersor import structure
from tersor.checkpoint.container import TensorEntry
from tersor.checkpoint.fit import Fit, check_device, fit
from tersor.checkpoint.manifest import LayerEntry
from tersor.checkpoint.opened import OpenedFile, open_checked
from tersor.checkpoint.rebuild import rebuild
from tersor.checkpoint.strict_json import clip, show
from tersor.checkpoint.tensors import DTYPE_NAMES, TORCH_DTYPES, check_values, read_tensor
from tersor.errors import CheckpointError, StructureError
from tersor.modules import sync_fast_paths, take_over
from tersor.nn.packed_layer import PackedLayer
from tersor.nn.registry import REGISTRY

_ALIGNMENT = 64  # bytes, of each tensor in the staging memory


@dataclass
class _Contents:
    layers: dict[str, PackedLayer] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Loads a file of ``tersor.save`` into a fresh float model, whose layers are replaced as they were when saved.

    Nothing else is needed: no calibration data, no preparation. The tensors take the dtypes of the file, on the CPU.
    The file is read layer by layer, so the peak is little more than the loaded model. When anything does not fit,
    the error comes before ``model`` is touched.

    Args:
        path: the file.
        model: a float model of the same architecture on the CPU, or without memory (``torch.device("meta")``, or
            ``tersor.checkpoint.parameters_on_meta`` if it has non-persistent buffers). None builds it from the file,
            for models of transformers and for single layers.

    Returns:
        ``model``, or the built one, in evaluation mode. If the root itself is an accelerated layer, that layer.

    Raises:
        CheckpointError: the file is no tersor file, has another format version, breaks a rule of docs/format.md, or
            does not fit ``model``.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise CheckpointError(f"model: expected a torch.nn.Module or None, got {type(model).__name__}")
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"), open_checked(path) as opened:
        for layer in opened.manifest.layers:
            _check_layer(opened, layer)
        staging = _staging(opened)
        alone = [layer.name for layer in opened.manifest.layers] == [""]
        if model is None and alone:
            return _read_layer(opened, opened.manifest.layers[0], staging).eval()
        if model is None:
            model = rebuild(opened.manifest.rebuild, lambda sketch: _edit_and_fit(sketch, opened), opened.file_bytes)
        saved = structure.Snapshot(model)
        try:
            contents = _fill(model, opened, staging)
        except BaseException:
            saved.restore()
            raise
        if alone:
            return contents.layers[""].eval()
    sync_fast_paths(model)
    return model.eval()


def _fill(model: nn.Module, opened: OpenedFile, staging: Tensor) -> _Contents:
    found = _edit_and_fit(model, opened)
    check_device(found)
    contents = _Contents()
    for name in opened.manifest.tensors:
        contents.tensors[name] = read_tensor(opened.file, opened.data_start, opened.entries[name])
    for layer in opened.manifest.layers:
        contents.layers[layer.name] = _read_layer(opened, layer, staging)
    changes = _changes(opened, found, contents)
    if "" not in contents.layers:
        _commit(changes)
    return contents


def _edit_and_fit(model: nn.Module, opened: OpenedFile) -> Fit:
    """Gives a float model the structure of the file, without memory for it, and finds the places of the contents."""
    try:
        with torch.device("meta"):
            structure.replay(model, [vars(edit) for edit in opened.manifest.edits])
    except StructureError as error:
        raise CheckpointError(str(error)) from error.__cause__
    return fit(model, opened.manifest, opened.entries)


def _check_layer(opened: OpenedFile, layer: LayerEntry) -> None:
    """The kind exists, the configuration is valid, and the file holds exactly the tensors that it asks for."""
    where = f"the layer {show(layer.name)}"
    cls = REGISTRY.get(layer.kind)
    if cls is None:
        raise CheckpointError(
            f"{where} is of the unknown kind {show(layer.kind)}; known: {', '.join(sorted(REGISTRY))}"
        )
    try:
        expected = cls.expected_tensors(layer.config)
    except ValueError as error:
        raise CheckpointError(f"{where} has an invalid configuration: {clip(str(error))}") from error
    entries = opened.layer_entries[layer.name]
    if entries.keys() != expected.keys():
        raise CheckpointError(f"{where} has the tensors {show(sorted(entries))}, expected {sorted(expected)}")
    for key, (dtype, shape) in expected.items():
        entry = entries[key]
        if entry.dtype != DTYPE_NAMES[dtype] or entry.shape != tuple(shape):
            raise CheckpointError(
                f"the tensor {show(entry.name)} is {entry.dtype} {show(entry.shape)}, "
                f"expected {DTYPE_NAMES[dtype]} {show(tuple(shape))}"
            )


def _staging(opened: OpenedFile) -> Tensor:
    """Memory for the canonical tensors of one layer at a time, uint8 [bytes of the largest].

    One block for all layers: freeing a large block per layer leaves gaps between the packed weights that stay, which
    was measured to cost up to half the size of the model.
    """
    sizes = (sum(map(_padded, entries.values())) for entries in opened.layer_entries.values())
    return torch.empty(max(sizes, default=0), dtype=torch.uint8, device="cpu")


def _padded(entry: TensorEntry) -> int:
    return entry.nbytes + -entry.nbytes % _ALIGNMENT


def _read_layer(opened: OpenedFile, layer: LayerEntry, staging: Tensor) -> PackedLayer:
    tensors, at = {}, 0
    for key, entry in sorted(opened.layer_entries[layer.name].items()):
        tensors[key] = read_tensor(opened.file, opened.data_start, entry, staging[at : at + entry.nbytes])
        check_values(entry, key, tensors[key])
        at += _padded(entry)
    try:
        module = REGISTRY[layer.kind].from_config(layer.config)
        module.fill(tensors)
    except ValueError as error:
        raise CheckpointError(f"the layer {show(layer.name)}: {clip(str(error))}") from error
    module._tersor_name = layer.name
    return module


def _changes(opened: OpenedFile, found: Fit, contents: _Contents) -> list[tuple[nn.Module, str, Any]]:
    """Every assignment that the model needs: (module, attribute, value). Tied names get the same object."""
    changes: list[tuple[nn.Module, str, Any]] = []
    for layer in opened.manifest.layers:
        new = contents.layers[layer.name]
        take_over(found.replaced[layer.name], new)
        changes += [(*found.parents[place], new) for place in (layer.name, *layer.aliases) if place]
    values: dict[str, Tensor] = {}
    for name in (*opened.manifest.tensors, *opened.manifest.aliases):
        slot, source = found.slots[name], opened.manifest.aliases.get(name, name)
        if source not in values:
            tensor = contents.tensors[source]
            values[source] = nn.Parameter(tensor, slot.tensor.requires_grad) if slot.is_parameter else tensor
        changes.append((slot.module, slot.key, values[source]))
    for name, dtype in opened.manifest.buffers.items():
        if name in found.buffers and found.buffers[name].tensor.is_floating_point():
            slot = found.buffers[name]
            changes.append((slot.module, slot.key, slot.tensor.to(TORCH_DTYPES[dtype])))
    return changes


def _commit(changes: list[tuple[nn.Module, str, Any]]) -> None:
    """All assignments or none: a module may refuse one in its own __setattr__."""
    done: list[tuple[nn.Module, str, Any]] = []
    try:
        for module, key, value in changes:
            old = getattr(module, key)
            setattr(module, key, value)
            done.append((module, key, old))
    except Exception as error:
        for module, key, value in reversed(done):
            setattr(module, key, value)
        raise CheckpointError(
            f"the {type(error).__name__} of a module's own __setattr__: {clip(str(error))}"
        ) from error

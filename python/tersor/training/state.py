"""A training state as one file: any tree of numbers, texts and tensors in a safetensors container, without pickle."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tersor.checkpoint.atomic import atomic_file, write_at
from tersor.checkpoint.container import check_entries, header_bytes, layout, read_header
from tersor.checkpoint.strict_json import Json, parse_object
from tersor.checkpoint.tensors import read_tensor, specification, write_tensor
from tersor.errors import CheckpointError, TrainError

_KEY = "tersor.training"
_MAX_DEPTH = 64


def write_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a state; the file holds the old one or the whole new one, whenever the process is killed.

    Args:
        state: mappings with string or integer keys, lists, tuples, tensors, NumPy arrays, texts, finite numbers,
            booleans and None.

    Raises:
        TrainError: something else in it, or the file can't be written (the OSError is the cause).
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps({"state": _encode(state, tensors)}, allow_nan=False, separators=(",", ":"))
    try:
        entries = layout({name: specification(tensor, name) for name, tensor in tensors.items()})
        head = header_bytes({_KEY: text}, entries)
        with atomic_file(Path(path)) as file:
            write_at(file, 0, memoryview(head))
            for entry in entries:
                write_tensor(file, len(head), entry, tensors[entry.name])
    except (CheckpointError, OSError) as error:
        raise TrainError(f"can't write the training state {os.fspath(path)}: {error}") from error


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`write_state` wrote.

    Raises:
        TrainError: the file can't be read, is damaged, or is something else.
    """
    try:
        with FileIO(path) as file:
            header = read_header(file, os.fstat(file.fileno()).st_size)
            entries = check_entries(header)
            if _KEY not in header.metadata:
                raise CheckpointError("it is a safetensors file, but no training state")
            tree = parse_object(header.metadata[_KEY].encode(), "the training state", max_depth=_MAX_DEPTH)
            tensors = {name: read_tensor(file, header.data_start, entry) for name, entry in entries.items()}
        state = _decode(tree.get("state"), tensors)
    except (CheckpointError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainError(f"can't read the training state {os.fspath(path)}: {error}") from error
    if not isinstance(state, dict):
        raise TrainError(f"can't read the training state {os.fspath(path)}: it holds no mapping")
    return state


def _encode(value: Any, tensors: dict[str, Tensor]) -> Json:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, Mapping):
        if not all(type(key) in (str, int) for key in value):
            raise TrainError(f"a training state needs keys that are texts or integers, got {list(value)[:3]}")
        return {"items": [[key, _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise TrainError(f"a training state can't hold {type(value).__name__} {value!r:.60}")


def _decode(value: Json, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: _decode(item, tensors) for key, item in content}
    if kind not in ("list", "tuple"):
        raise CheckpointError(f"it holds a value of the unknown kind {kind!r}")
    items = [_decode(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)

"""Measurements of this host, kept in a JSON file in the user's cache folder.

One file per CPU model, instruction set, thread count, tersor version and build, and torch version. A file that can't
be read, is damaged or belongs to something else is passed over with one warning and made anew; a folder that can't be
written to means that measurements live in memory only, with one warning.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tersor import host
from tersor._native import core
from tersor.checkpoint.atomic import atomic_file, write_at

SCHEMA = "tersor.tune/1"

Times = tuple[float, float]
"""Microseconds per call, float and int8."""

_warned: set[str] = set()


def cache_key(threads: int) -> dict[str, str]:
    """What a measurement belongs to. Raises NativeError when the compiled part is missing."""
    native = core()
    return {
        "cpu": host.cpu_model(),
        "isa": native.isa_active(),
        "threads": str(threads),
        "tersor": host.version_of("tersor") or "not installed",
        "build": _build_of(native.__file__),
        "torch": torch.__version__,
    }


def _build_of(module_file: str | None) -> str:
    """Sizes and dates of the compiled files, so that a rebuild of the same version is measured anew."""
    if module_file is None:
        return "unknown"
    stamps = []
    for path in sorted(Path(module_file).parent.glob("*.so*")):
        status = path.stat()
        stamps.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:16]


class TuneCache:
    """The measurements for one key. With ``persistent=False`` no file is touched."""

    def __init__(self, key: Mapping[str, str], *, persistent: bool = True) -> None:
        self.key = dict(key)
        self.path = self._file() if persistent else None
        self._times = self._read()
        self._unsaved: dict[str, dict[int, Times]] = {}

    def _file(self) -> Path | None:
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
        try:
            return host.cache_folder() / f"tune-{digest}.json"
        except RuntimeError as error:
            _warn_once(f"measurements are kept in memory only: {error}")
            return None

    def get(self, layer: str, rows: int) -> Times | None:
        """The times of a layer, described by a string, at a number of rows; None where they are not known."""
        return self._times.get(layer, {}).get(rows)

    def put(self, layer: str, rows: int, times: Times, *, remember: bool = True) -> None:
        """Note the times of a layer; :meth:`save` writes those to ``remember``, the others last as long as this."""
        self._times.setdefault(layer, {})[rows] = times
        if remember:
            self._unsaved.setdefault(layer, {})[rows] = times

    def save(self) -> None:
        """Write the file, with what other processes added to it meanwhile; the file is replaced in one step."""
        if self.path is None or not self._unsaved:
            return
        merged = self._read()
        for layer, times in self._unsaved.items():
            merged.setdefault(layer, {}).update(times)
        self._unsaved = {}
        layers = {layer: {str(rows): pair for rows, pair in times.items()} for layer, times in merged.items()}
        content = json.dumps({"schema": SCHEMA, "key": self.key, "layers": layers}, indent=1).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.path) as file:
                write_at(file, 0, memoryview(content))
        except OSError as error:
            _warn_once(f"measurements are kept in memory only, {self.path.parent} can't be written to: {error}")
            self.path = None

    def _read(self) -> dict[str, dict[int, Times]]:
        if self.path is None:
            return {}
        try:
            return parse(self.path.read_bytes(), self.key)
        except FileNotFoundError:
            return {}
        except OSError as error:
            if not os.path.isdir(self.path.parent):
                return {}
            _warn_once(f"can't read {self.path}, measuring again: {error}")
        except ValueError as error:
            _warn_once(f"{self.path} is not a cache of these measurements ({error}); measuring again")
        return {}


def parse(content: bytes, key: Mapping[str, str]) -> dict[str, dict[int, Times]]:
    """The measurements in a cache file.

    Raises:
        ValueError: the content is damaged or belongs to another key.
    """
    try:
        data = json.loads(content)
    except RecursionError as error:
        raise ValueError("too deep") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    if data.get("key") != dict(key):
        raise ValueError("it belongs to another host, build or thread count")
    layers = data.get("layers")
    if not isinstance(layers, dict) or not all(isinstance(times, dict) for times in layers.values()):
        raise ValueError("it holds no layers")
    return {layer: {int(rows): _pair(pair) for rows, pair in times.items()} for layer, times in layers.items()}


def _pair(value: Any) -> Times:
    if not isinstance(value, list) or len(value) != 2 or not all(type(item) in (int, float) for item in value):
        raise ValueError(f"{value!r} is no pair of times")
    first, second = float(value[0]), float(value[1])
    if not (0 < first < math.inf and 0 < second < math.inf):
        raise ValueError(f"{value!r} is no pair of times")
    return first, second


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(f"tersor: {message}", RuntimeWarning, stacklevel=2)

"""A valid file taken apart, to be changed and put together again. Uses nothing of the package under test."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Parts:
    """`header` without `__metadata__`, `metadata` without the manifest, the `manifest` parsed, the `data` section."""

    header: dict[str, Any]
    metadata: dict[str, Any]
    manifest: Any
    data: bytearray

    @classmethod
    def of(cls, file: bytes) -> Parts:
        (length,) = struct.unpack_from("<Q", file)
        header = json.loads(file[8 : 8 + length])
        metadata = header.pop("__metadata__")
        return cls(header, metadata, json.loads(metadata.pop("tersor.manifest")), bytearray(file[8 + length :]))

    def header_text(self) -> str:
        metadata = {**self.metadata, "tersor.manifest": json.dumps(self.manifest)}
        return json.dumps({"__metadata__": metadata, **self.header})

    def pack(self) -> bytes:
        return assemble(self.header_text(), bytes(self.data))

    def pack_manifest(self, text: str) -> bytes:
        """The file with this text for its manifest."""
        metadata = {**self.metadata, "tersor.manifest": text}
        return assemble(json.dumps({"__metadata__": metadata, **self.header}), bytes(self.data))

    def values(self, name: str) -> memoryview:
        """The bytes of a tensor, to be changed in place."""
        begin, end = self.header[name]["data_offsets"]
        return memoryview(self.data)[begin:end]

    def layer(self, name: str) -> dict[str, Any]:
        return next(layer for layer in self.manifest["layers"] if layer["name"] == name)

    def insert(self, name: str, dtype: str, shape: list[int], data: bytes) -> None:
        """A further tensor at the end of the data."""
        self.header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(self.data), len(self.data) + len(data)],
        }
        self.data += data

    def remove(self, name: str) -> None:
        """Takes a tensor out, and its bytes."""
        begin, end = self.header.pop(name)["data_offsets"]
        del self.data[begin:end]
        for entry in self.header.values():
            entry["data_offsets"] = [at - (end - begin) * (at >= end) for at in entry["data_offsets"]]


def assemble(header: str | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else header.encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


@dataclass
class Case:
    """`make` gives the hostile bytes for a valid file; the error must match `message`.

    Cases with `header_only` must already be refused by inspect, which reads no tensor and knows no kinds.
    """

    make: Callable[[Parts], bytes]
    message: str
    header_only: bool = True


class Cases(dict[str, Case]):
    """Collects cases: a decorated function changes the parts in place, or returns the bytes itself."""

    def __call__(
        self, message: str, *, header_only: bool = True
    ) -> Callable[[Callable[[Parts], bytes | None]], Callable[[Parts], bytes | None]]:
        def add(change: Callable[[Parts], bytes | None]) -> Callable[[Parts], bytes | None]:
            self.change(change.__name__, message, change, header_only=header_only)
            return change

        return add

    def change(self, name: str, message: str, change: Callable[[Parts], Any], *, header_only: bool = True) -> None:
        assert name not in self

        def make(parts: Parts) -> bytes:
            made = change(parts)
            return made if isinstance(made, bytes) else parts.pack()

        self[name] = Case(make, message, header_only)

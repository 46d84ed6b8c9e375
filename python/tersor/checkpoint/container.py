"""The safetensors container: an 8 byte header length, a JSON header, the tensors' bytes. Nothing here needs torch.

Every length, shape and offset is checked against the size of the file before anything is allocated for it.
Source of the layout: the safetensors format description. Our rules on top of it are in docs/format.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from typing import TypeGuard

from tersor.checkpoint.strict_json import Json, parse_object, show
from tersor.errors import CheckpointError

LENGTH_BYTES = 8
ALIGNMENT = 8  # of the data section, and so the widest element
MAX_HEADER_BYTES = 32 << 20
MAX_HEADER_DEPTH = 4
MAX_DIMS = 32
MAX_COUNT = 1 << 62  # of elements and of bytes
MAX_NAME_CHARS = 1024
METADATA = "__metadata__"

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive, as torch.save writes",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip file",
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file: ``begin`` and ``end`` count bytes from the start of the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """The parsed header; its tensor entries are still unchecked."""

    metadata: dict[str, str]
    tensors: dict[str, Json]
    data_start: int
    data_bytes: int


def is_count(value: object) -> TypeGuard[int]:
    """A non-negative integer below 2**62; True and False are no integers here."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_COUNT


def is_name(value: object) -> TypeGuard[str]:
    """A dotted name as torch gives it to parameters: printable, no empty part."""
    return isinstance(value, str) and len(value) <= MAX_NAME_CHARS and value.isprintable() and all(value.split("."))


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor. Raises CheckpointError when the count overflows, even if another dimension is 0."""
    count, empty = ITEM_BYTES[dtype], False
    for size in shape:
        empty = empty or size == 0
        count *= size or 1
        if count >= MAX_COUNT:
            raise CheckpointError(f"the shape {show(tuple(shape))} is too large")
    return 0 if empty else count


def layout(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[TensorEntry]:
    """Places tensors {name: (dtype, shape)} without a hole: widest elements first, so that each is aligned."""
    entries, offset = [], 0
    for name in sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name][0]], name)):
        dtype, shape = tensors[name]
        end = offset + tensor_bytes(dtype, shape)
        entries.append(TensorEntry(name, dtype, shape, offset, end))
        offset = end
    return entries


def header_bytes(metadata: Mapping[str, str], entries: Iterable[TensorEntry]) -> bytes:
    """The length and the header, padded with spaces so that the data section is aligned. Same input, same bytes."""
    header: dict[str, Json] = {METADATA: dict(sorted(metadata.items()))}
    for entry in entries:
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (entry.begin, entry.end)}
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode("ascii")
    text += b" " * (-len(text) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise CheckpointError(f"the header would take {len(text)} bytes; the limit is {MAX_HEADER_BYTES}")
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def read_header(file: FileIO, file_bytes: int) -> Header:
    """Reads and parses the header. Raises CheckpointError, naming other well-known formats."""
    if file_bytes == 0:
        raise CheckpointError("the file is empty")
    start = read_exactly(file, 0, min(LENGTH_BYTES, file_bytes))
    length = int.from_bytes(start, "little")
    if len(start) < LENGTH_BYTES or length > file_bytes - LENGTH_BYTES:
        raise _not_ours(start, f"{file_bytes} bytes do not hold its header; perhaps a truncated one")
    if length > MAX_HEADER_BYTES:
        raise _not_ours(start, f"the header takes {length} bytes, the limit is {MAX_HEADER_BYTES}")
    if length % ALIGNMENT:
        raise _not_ours(start, f"the header length {length} is not a multiple of {ALIGNMENT}")
    text = read_exactly(file, LENGTH_BYTES, length)
    if not text.startswith(b"{"):
        raise _not_ours(start, "the header does not begin with '{'")
    tensors = parse_object(text, "the header", max_depth=MAX_HEADER_DEPTH)
    metadata = tensors.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{METADATA} is not an object of strings")
    data_start = LENGTH_BYTES + length
    return Header(metadata, tensors, data_start, file_bytes - data_start)


def _not_ours(start: bytes, why: str) -> CheckpointError:
    for magic, what in _OTHER_FORMATS.items():
        if start.startswith(magic):
            return CheckpointError(f"not a tersor file: it looks like {what}")
    return CheckpointError(f"not a tersor file: {why}")


def read_exactly(file: FileIO, offset: int, count: int) -> bytes:
    """Reads ``count`` bytes at ``offset``; the caller has checked both against the size of the file."""
    data = bytearray(count)
    read_into(file, offset, memoryview(data))
    return bytes(data)


def read_into(file: FileIO, offset: int, target: memoryview) -> None:
    """Fills ``target`` from ``offset`` on. Raises CheckpointError when the file ends early."""
    file.seek(offset)
    while target:
        count = file.readinto(target)
        if not count:
            raise CheckpointError("the file ended while it was read; was it changed meanwhile?")
        target = target[count:]


def check_entries(header: Header) -> dict[str, TensorEntry]:
    """Checks every tensor entry: name, dtype, shape, size, alignment; together they fill the data section exactly."""
    entries = {name: _check_entry(name, fields) for name, fields in header.tensors.items()}
    offset = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != offset:
            problem = "overlaps the tensor before it" if entry.begin < offset else "leaves a hole before it"
            raise CheckpointError(f"the tensor {show(entry.name)} {problem} (byte {entry.begin}, expected {offset})")
        offset = entry.end
    if offset != header.data_bytes:
        raise CheckpointError(
            f"the tensors take {offset} bytes but {header.data_bytes} follow the header: truncated, or with a tail"
        )
    return entries


def _check_entry(name: str, fields: Json) -> TensorEntry:
    where = f"the tensor {show(name)}"
    if not is_name(name):
        raise CheckpointError(f"{where} has no valid name")
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} needs exactly the fields dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError(f"{where} has the unknown dtype {show(dtype)}; known: {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(is_count(size) for size in shape):
        raise CheckpointError(f"{where} has the invalid shape {show(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_count(offset) for offset in offsets):
        raise CheckpointError(f"{where} has the invalid offsets {show(offsets)}")
    begin, end = offsets
    expected = tensor_bytes(dtype, shape)
    if end - begin != expected:
        raise CheckpointError(f"{where} takes {end - begin} bytes, but {dtype} {show(shape)} needs {expected}")
    if begin % ITEM_BYTES[dtype]:
        raise CheckpointError(f"{where} of {dtype} begins at byte {begin}, which is not aligned")
    return TensorEntry(name, dtype, tuple(shape), begin, end)

"""An open file whose header, manifest and offsets have all been checked. Nothing here needs torch."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO

from tersor import __version__
from tersor.checkpoint.container import TensorEntry, check_entries, read_header
from tersor.checkpoint.manifest import VERSION_KEY, WRITER_KEY, Manifest, check_version, from_metadata, match_entries
from tersor.errors import CheckpointError


@dataclass(frozen=True)
class OpenedFile:
    """``layer_entries`` gives the tensors of each layer: {layer name: {key: entry}}."""

    file: FileIO
    file_bytes: int
    data_start: int
    format_version: int
    written_by: str
    manifest: Manifest
    entries: Mapping[str, TensorEntry]
    layer_entries: Mapping[str, Mapping[str, TensorEntry]]


@contextmanager
def open_checked(path: str | os.PathLike[str]) -> Iterator[OpenedFile]:
    """Opens a regular file and checks it. Every CheckpointError raised in the block is given the path.

    Raises:
        CheckpointError: the file cannot be read, is no tersor file, or breaks a rule of docs/format.md.
    """
    name = os.fspath(path)
    try:
        with FileIO(_open_regular(path), "r") as file:
            size = os.fstat(file.fileno()).st_size
            header = read_header(file, size)
            check_version(header.metadata, __version__)
            entries = check_entries(header)
            manifest = from_metadata(header.metadata)
            owned = match_entries(manifest, entries)
            version, writer = int(header.metadata[VERSION_KEY]), header.metadata[WRITER_KEY]
            yield OpenedFile(file, size, header.data_start, version, writer, manifest, entries, owned)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error.__cause__
    except OSError as error:
        raise CheckpointError(f"{name}: cannot read: {error.strerror or error}") from error


def _open_regular(path: str | os.PathLike[str]) -> int:
    """A descriptor of a regular file; a pipe without a writer must not block the open. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return descriptor

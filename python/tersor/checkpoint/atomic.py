"""Writing a file so that its name points to the old content or to the whole new one, never to something between."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path


@contextmanager
def atomic_file(path: Path) -> Iterator[FileIO]:
    """A file to write, beside ``path``; renamed to ``path`` when the block succeeds, removed when it raises.

    The data is flushed to the disk before the rename, the folder after it. A symbolic link is followed, the
    permissions of an existing file are kept. A process that is killed leaves ``.NAME.*.tmp`` behind and ``path``
    as it was. Raises OSError.
    """
    target = Path(os.path.realpath(path))
    mode = _mode_of(target)
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with FileIO(descriptor, "r+") as file:
            if mode is not None:
                os.fchmod(descriptor, mode)
            yield file
            os.fsync(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def write_at(file: FileIO, offset: int, data: memoryview) -> None:
    """Writes all of ``data`` at ``offset``. Raises OSError."""
    file.seek(offset)
    while data:
        data = data[file.write(data) :]


def _mode_of(target: Path) -> int | None:
    try:
        found = os.stat(target)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"it exists and is not a regular file: {target}")
    return stat.S_IMODE(found.st_mode)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""What a user sees when a compiled file is missing or damaged: one NativeError that says why and what to do."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tersor
from tersor import _native
from tersor.errors import NativeError, TersorError

# Starts without site-packages' .pth files, which could lead an import back to the installed package.
START = """
import sys
sys.path[:0] = [{root!r}]
sys.path += {site!r}
import tersor
assert tersor.__file__.startswith({root!r}), tersor.__file__
"""
PURE = "import tersor.errors, tersor.recipe, tersor.steps; tersor.Recipe, tersor.NativeError, tersor.__version__\n"
TWICE = """
for attempt in range(2):
    try:
        {statement}
    except tersor.NativeError as error:
        assert error.cause and error.fix and isinstance(error, tersor.TersorError)
        print(error)
    else:
        print("loaded")
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The installed package, Python and compiled files, in a folder of its own."""
    for part in tersor.__path__:
        shutil.copytree(part, tmp_path / "tersor", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "tersor"


def lines_of(copy: Path, code: str) -> list[str]:
    site = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    start = START.format(root=str(copy.parent), site=site)
    run = subprocess.run([sys.executable, "-S", "-c", start + code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def only(copy: Path, pattern: str) -> Path:
    (path,) = copy.glob(pattern)
    return path


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a shared library\n" * 100)


KERNELS = "import tersor.kernels; tersor.kernels.available()"
OPS = "import tersor.ops; tersor.ops.LINEAR_S8"


@pytest.mark.parametrize("statement", [KERNELS, OPS])
def test_the_copy_itself_works(copy: Path, statement: str) -> None:
    assert lines_of(copy, PURE + TWICE.format(statement=statement)) == ["loaded", "loaded"]


@pytest.mark.parametrize(
    ("file", "harm", "statement", "cause"),
    [
        ("_C.*.so", remove, KERNELS, "no compiled module _C for Python 3"),
        ("_C.*.so", truncate, KERNELS, ".so is truncated"),
        ("_C.*.so", overwrite, KERNELS, "invalid ELF header"),
        ("libtersor.so", remove, KERNELS, "libtersor.so: cannot open shared object file"),
        ("libtersor.so", overwrite, OPS, "invalid ELF header"),
        ("_torch_ops.so", remove, OPS, "no file _torch_ops.so"),
        ("_torch_ops.so", truncate, OPS, "_torch_ops.so is truncated"),
        ("_torch_ops.so", overwrite, OPS, "_torch_ops.so does not load with torch"),
        ("libtersor.so", truncate, OPS, "libtersor.so is truncated"),
        ("libtersor.so", truncate, KERNELS, "libtersor.so is truncated"),
    ],
)
def test_a_missing_or_damaged_file(
    copy: Path, file: str, harm: Callable[[Path], None], statement: str, cause: str
) -> None:
    harm(only(copy, file))
    lines = lines_of(copy, PURE + TWICE.format(statement=statement))
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert cause in lines[0]
    assert "To fix it: install tersor again for this Python: `pip install" in lines[0]


def test_the_numpy_kernels_work_without_the_torch_ops(copy: Path) -> None:
    remove(only(copy, "_torch_ops.so"))
    assert lines_of(copy, TWICE.format(statement=KERNELS)) == ["loaded", "loaded"]


def test_an_old_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.9.1+cpu"))
    with pytest.raises(
        NativeError, match=r"needs torch 2\.10 or newer and found torch 2\.9\.1.*pip install 'torch>=2\.10'"
    ):
        _native.torch_ops.__wrapped__()


def test_two_copies_in_one_process_are_refused(copy: Path) -> None:
    """Torch registers an op library once; the second copy must not end the process."""
    code = f"""
import shutil, torch, tersor.ops, tersor._native
other = {str(copy.parent / "other")!r}
shutil.copytree({str(copy)!r}, other)
torch.ops.load_library(other + "/_torch_ops.so")
print(tersor.ops.LINEAR_S8.name())
"""
    assert lines_of(copy, code) == ["tersor::linear_s8"]


def test_the_error_survives_a_process_border() -> None:
    error = NativeError("It is gone.", "bring it back.")
    back = pickle.loads(pickle.dumps(error))
    assert (back.cause, back.fix, str(back)) == (
        "It is gone.",
        "bring it back.",
        "It is gone. To fix it: bring it back.",
    )
    assert isinstance(back, TersorError)

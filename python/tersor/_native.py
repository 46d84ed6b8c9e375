"""Loads the compiled parts, and says what to do when one of them is missing.

`_C` (kernels on NumPy arrays) and `_torch_ops.so` (torch ops) both link `libtersor.so`; all three lie in this package.
"""

from __future__ import annotations

import importlib
import platform
from functools import cache
from pathlib import Path
from types import ModuleType

from tersor.errors import NativeError

MIN_TORCH = (2, 10)

_REINSTALL = (
    "install tersor again for this Python: `pip install --force-reinstall tersor`, or `pip install .` in a checkout."
)


def _here() -> str:
    return f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"


@cache
def core() -> ModuleType:
    """The module `tersor._C`. Raises NativeError when it is missing or does not load."""
    try:
        return importlib.import_module("tersor._C")
    except ModuleNotFoundError as error:
        raise NativeError(f"tersor has no compiled module _C for {_here()}.", _REINSTALL) from error
    except ImportError as error:
        raise NativeError(f"tersor's compiled module _C does not load ({error}).", _REINSTALL) from error


@cache
def torch_ops() -> None:
    """Registers `torch.ops.tersor`, once. Raises NativeError when the library is missing or does not load."""
    import torch

    found = f"torch {torch.__version__}"
    if torch.__version__ < MIN_TORCH:
        raise NativeError(f"tersor needs torch 2.10 or newer and found {found}.", "`pip install 'torch>=2.10'`.")
    path = _torch_ops_path()
    if path is None:
        raise NativeError(f"tersor has no file _torch_ops.so for {_here()}.", _REINSTALL)
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise NativeError(f"tersor's _torch_ops.so does not load with {found} ({error}).", _REINSTALL) from error
    if not hasattr(torch.ops.tersor, "linear_s8"):
        raise NativeError(
            f"{found} refused the ops of {path}; its message is on stderr.",
            "load only one copy of tersor in a process, or start a new one.",
        )


def _torch_ops_path() -> Path | None:
    import tersor

    candidates = (Path(folder) / "_torch_ops.so" for folder in tersor.__path__)
    return next((path for path in candidates if path.is_file()), None)

"""Loads the compiled parts, and says what to do when one of them is missing.

`_C` (kernels on NumPy arrays) and `_torch_ops.so` (torch ops) both link `libtersor.so`; all three lie in this package.
A build with CUDA adds `libtersor_cuda.so` and, linked to it, `_cuda` and `_torch_ops_cuda.so`.
"""

from __future__ import annotations

import importlib
import platform
import struct
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

from tersor.errors import NativeError

MIN_TORCH = (2, 10)

_OPS = (
    "linear_s8",
    "spmm_s8",
    "spmm_f32",
    "lowrank_f32",
    "lowrank_s8",
    "linear_lut4",
    "recurrent_s8",
    "embedding_s8",
    "embedding_bag_s8",
)

_REINSTALL = (
    "install tersor again for this Python: `pip install --force-reinstall tersor`, or `pip install .` in a checkout."
)


def _here() -> str:
    return f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"


def _file(pattern: str) -> Path | None:
    """The file of this package that matches, checked for being whole: the loader dies on a truncated one."""
    import tersor

    found = (path for folder in tersor.__path__ for path in sorted(Path(folder).glob(pattern)))
    path = next(found, None)
    if path is not None:
        with path.open("rb") as file:
            header = file.read(64)
        if len(header) == 64 and header.startswith(b"\x7fELF\x02\x01"):
            # The section table is the last part of a shared library: where it starts, entry size and count.
            start, (size, count) = struct.unpack_from("<Q", header, 40)[0], struct.unpack_from("<HH", header, 58)
            if start + size * count > path.stat().st_size:
                raise NativeError(f"{path} is truncated.", _REINSTALL)
    return path


@cache
def core() -> ModuleType:
    """The module `tersor._C`. Raises NativeError when it is missing or does not load."""
    _file("libtersor.so")
    if _file(f"_C{sysconfig.get_config_var('EXT_SUFFIX')}") is None:
        raise NativeError(f"tersor has no compiled module _C for {_here()}.", _REINSTALL)
    try:
        return importlib.import_module("tersor._C")
    except ImportError as error:
        raise NativeError(f"tersor's compiled module _C does not load ({error}).", _REINSTALL) from error


def has_cuda_kernels() -> bool:
    """Whether this build of tersor has CUDA kernels; says nothing about a GPU."""
    return _file(f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}") is not None


def cuda() -> ModuleType:
    """The module `tersor._cuda`. Raises NativeError when this build has no CUDA kernels or the host no GPU for them."""
    module = _cuda_module()
    problem: str = module.device_problem()
    if problem:
        fix = "install an NVIDIA driver for CUDA 13 or newer and check it with `nvidia-smi`, or keep to the CPU."
        raise NativeError(f"tersor's CUDA kernels cannot run on this host ({problem}).", fix)
    return module


@cache
def _cuda_module() -> ModuleType:
    if not has_cuda_kernels():
        fix = "build it where nvcc is on PATH: `TERSOR_CUDA=ON pip install .` in a checkout."
        raise NativeError("this build of tersor has no CUDA kernels.", fix)
    _file("libtersor_cuda.so")
    try:
        return importlib.import_module("tersor._cuda")
    except ImportError as error:
        raise NativeError(f"tersor's compiled module _cuda does not load ({error}).", _REINSTALL) from error


@cache
def torch_ops() -> None:
    """Registers `torch.ops.tersor`, once. Raises NativeError when the library is missing or does not load."""
    import torch

    found = f"torch {torch.__version__}"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MIN_TORCH:
        raise NativeError(f"tersor needs torch 2.10 or newer and found {found}.", "`pip install 'torch>=2.10'`.")
    _file("libtersor.so")
    path = _file("_torch_ops.so")
    if path is None:
        raise NativeError(f"tersor has no file _torch_ops.so for {_here()}.", _REINSTALL)
    _load(path, found)
    if not all(hasattr(torch.ops.tersor, op) for op in _OPS):
        raise NativeError(
            f"{found} refused the ops of {path}; its message is on stderr.",
            "load only one copy of tersor in a process, or start a new one.",
        )
    cuda_path = _file("_torch_ops_cuda.so")
    if cuda_path is not None:
        _file("libtersor_cuda.so")
        _load(cuda_path, found)


def _load(path: Path, found: str) -> None:
    import torch

    load: Callable[[Path], None] = torch.ops.load_library
    try:
        load(path)
    except OSError as error:
        why = error.__cause__ or error  # torch puts the loader's own message into the cause
        raise NativeError(f"tersor's {path.name} does not load with {found} ({why}).", _REINSTALL) from error

"""The hand-written list of torch's C shim against the headers of the installed torch."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

BINDINGS = Path(__file__).parents[2] / "csrc" / "bindings"
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

# Torch's own declarations, restricted to those of 2.10, the oldest release that is supported. A name that is missing
# there or has another signature does not compile; neither do types in torch_shim.h that differ from torch's.
SOURCE = """
#define TORCH_TARGET_VERSION ((2ull << 56) | (10ull << 48))
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <type_traits>
#define SHIM(result, name, arguments) \\
  static_assert(std::is_same_v<decltype(&name), result (*) arguments>, "signature of " #name);
#include "torch_shim.def"
#undef SHIM
#include "torch_shim.h"
static_assert(kTorchShimVersion == TORCH_VERSION_2_10_0, "the version that the boxed kernels declare");
static_assert(kTorchShimVersion <= TORCH_ABI_VERSION, "the installed torch is older than the one declared");
"""


def compile_against_torch(bindings: Path) -> subprocess.CompletedProcess[str]:
    assert COMPILER is not None
    include = Path(torch.__file__).parent / "include"
    command = [COMPILER, "-std=c++17", "-fsyntax-only", "-xc++", f"-I{bindings}", f"-isystem{include}", "-"]
    return subprocess.run(command, input=SOURCE, capture_output=True, text=True, check=False)


needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on PATH")


@needs_compiler
def test_every_declaration_is_torch_2_10s_own() -> None:
    run = compile_against_torch(BINDINGS)
    assert run.returncode == 0, run.stderr


@needs_compiler
@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "aoti_torch_get_dim, (AtenTensorHandle, int64_t*)",
            "aoti_torch_get_dim, (AtenTensorHandle, int32_t*)",
            "get_dim",
        ),
        ("SHIM(AOTITorchError, torch_get_num_threads", "SHIM(void, torch_get_num_threads", "torch_get_num_threads"),
        (
            "aoti_torch_copy_, (AtenTensorHandle, AtenTensorHandle, int32_t)",
            "aoti_torch_copy_, (AtenTensorHandle)",
            "copy_",
        ),
        ("torch_parallel_for,", "torch_parallel_loop,", "torch_parallel_loop"),
        ("SHIM(int32_t, aoti_torch_dtype_int8, ())", "SHIM(int32_t, torch_dtype_float8_e8m0fnu, ())", "e8m0fnu"),
    ],
    ids=["argument type", "result type", "argument count", "unknown name", "name newer than 2.10"],
)
def test_a_planted_mistake_does_not_compile(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    shutil.copy(BINDINGS / "torch_shim.h", tmp_path)
    text = (BINDINGS / "torch_shim.def").read_text()
    assert text.count(old) == 1
    (tmp_path / "torch_shim.def").write_text(text.replace(old, new))
    run = compile_against_torch(tmp_path)
    assert run.returncode != 0
    assert complaint in run.stderr


@needs_compiler
def test_a_planted_type_does_not_compile(tmp_path: Path) -> None:
    shutil.copy(BINDINGS / "torch_shim.def", tmp_path)
    text = (BINDINGS / "torch_shim.h").read_text()
    assert text.count("typedef int32_t AOTITorchError") == 1
    (tmp_path / "torch_shim.h").write_text(
        text.replace("typedef int32_t AOTITorchError", "typedef int64_t AOTITorchError")
    )
    run = compile_against_torch(tmp_path)
    assert run.returncode != 0
    assert "AOTITorchError" in run.stderr

"""The hand-written part of DLPack's ABI against the header that torch ships."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

BINDINGS = Path(__file__).parents[2] / "csrc" / "bindings"
HEADER = Path(torch.__file__).parent / "include" / "ATen" / "dlpack.h"
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

SAME = """
#include <ATen/dlpack.h>
#include <cstddef>
#include "dlpack_abi.h"
using namespace tersor::dlpack;
#define SAME(ours, our_member, theirs, their_member) \\
  static_assert(offsetof(ours, our_member) == offsetof(theirs, their_member) && \\
                sizeof(ours::our_member) == sizeof(theirs::their_member), #their_member)
static_assert(kMajor == DLPACK_MAJOR_VERSION && kCpu == kDLCPU, "");
static_assert(kUInt == kDLUInt && kFloat == kDLFloat && kBfloat == kDLBfloat, "");
static_assert(sizeof(View) == sizeof(DLTensor) && sizeof(Managed) == sizeof(DLManagedTensorVersioned), "");
static_assert(sizeof(Exchange) == sizeof(DLPackExchangeAPI) && sizeof(DataType) == sizeof(DLDataType), "");
SAME(View, data, DLTensor, data);
SAME(View, ndim, DLTensor, ndim);
SAME(View, dtype, DLTensor, dtype);
SAME(View, shape, DLTensor, shape);
SAME(View, strides, DLTensor, strides);
SAME(View, byte_offset, DLTensor, byte_offset);
static_assert(offsetof(View, device_type) == offsetof(DLTensor, device) + offsetof(DLDevice, device_type), "");
static_assert(offsetof(View, device_id) == offsetof(DLTensor, device) + offsetof(DLDevice, device_id), "");
SAME(DataType, code, DLDataType, code);
SAME(DataType, bits, DLDataType, bits);
SAME(DataType, lanes, DLDataType, lanes);
SAME(Managed, tensor, DLManagedTensorVersioned, dl_tensor);
SAME(Managed, deleter, DLManagedTensorVersioned, deleter);
SAME(Exchange, version, DLPackExchangeAPI, header.version);
SAME(Exchange, allocate, DLPackExchangeAPI, managed_tensor_allocator);
SAME(Exchange, take, DLPackExchangeAPI, managed_tensor_from_py_object_no_sync);
SAME(Exchange, give, DLPackExchangeAPI, managed_tensor_to_py_object_no_sync);
SAME(Exchange, look, DLPackExchangeAPI, dltensor_from_py_object_no_sync);
SAME(Exchange, stream, DLPackExchangeAPI, current_work_stream);
"""


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on PATH")
@pytest.mark.skipif("DLPackExchangeAPI" not in HEADER.read_text(), reason="this torch has no exchange table")
@pytest.mark.parametrize(
    ("old", "new"),
    [("", ""), ("DataType dtype;", "int64_t lead; DataType dtype;"), ("kFloat = 2", "kFloat = 3")],
    ids=["as it is", "a member too many", "a wrong code"],
)
def test_layout_is_torchs_own(tmp_path: Path, old: str, new: str) -> None:
    assert COMPILER is not None
    text = (BINDINGS / "dlpack_abi.h").read_text()
    assert old in text
    (tmp_path / "dlpack_abi.h").write_text(text.replace(old, new, 1) if old else text)
    command = [COMPILER, "-std=c++17", "-fsyntax-only", "-xc++", "-Wno-invalid-offsetof", f"-I{tmp_path}"]
    command += [f"-isystem{HEADER.parents[1]}", "-"]
    run = subprocess.run(command, input=SAME, capture_output=True, text=True, check=False)
    assert (run.returncode == 0) == (not old), run.stderr

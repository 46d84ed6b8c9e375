"""A package with or without CUDA kernels on a host with or without a GPU: what loads, and what the errors say."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tersor import _native, kernels
from tersor.errors import NativeError, TersorError
from tersor.nn import Int8Linear

WITH_KERNELS = _native.has_cuda_kernels()
HAS_GPU = torch.cuda.is_available()


def test_launchers_say_what_is_missing() -> None:
    if WITH_KERNELS and HAS_GPU:
        assert kernels.cuda().device_problem() == ""
        return
    with pytest.raises(NativeError) as caught:
        kernels.cuda()
    expected = "cannot run on this host" if WITH_KERNELS else "no CUDA kernels"
    assert expected in caught.value.cause
    assert ("nvidia-smi" if WITH_KERNELS else "TERSOR_CUDA=ON") in caught.value.fix


@pytest.mark.skipif(not WITH_KERNELS, reason="this build has no CUDA kernels")
def test_a_build_with_cuda_imports_without_a_driver() -> None:
    """The libraries load and the op stays usable on the CPU; no libcuda comes with them."""
    code = """
import sys
from tersor import _native, kernels
from tersor.errors import NativeError
module = _native._cuda_module()
assert module.packed_bytes_gemm_s8(16, 64) == 1024
try:
    kernels.cuda()
except NativeError as error:
    assert error.cause and error.fix
import torch, tersor.ops
layer = __import__("tersor").nn.Int8Linear.from_float(torch.nn.Linear(70, 33))
assert layer(torch.randn(3, 70)).shape == (3, 33)
maps = open("/proc/self/maps").read()
assert "libtersor_cuda.so" in maps and "_torch_ops_cuda.so" in maps
print("libcuda.so" in maps)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert run.returncode == 0, run.stderr
    if not HAS_GPU:
        assert run.stdout.strip() == "False"


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU")
def test_moving_a_layer_without_a_gpu_is_a_clear_error() -> None:
    layer = Int8Linear.from_float(torch.nn.Linear(8, 4))
    layer._tersor_name = "head"
    with pytest.raises(TersorError, match=r"Int8Linear 'head' cannot move to cuda.*(TERSOR_CUDA=ON|cannot run)"):
        layer._repacked(torch.device("cuda"))
    assert layer(torch.randn(1, 8)).shape == (1, 4)

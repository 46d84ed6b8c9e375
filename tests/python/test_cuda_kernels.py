"""The CUDA launchers on torch memory: exact integers for every tile and split, derived bounds for sums in float."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import numpy_reference as reference
import pytest
import torch
from torch import Tensor

TILES = 4
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def stream() -> int:
    return torch.cuda.current_stream().cuda_stream


class Weight:
    """W [n, k] packed on the device."""

    def __init__(self, gpu: ModuleType, rng: np.random.Generator, n: int, k: int) -> None:
        self.w, self.scale = reference.weight(rng, n, k)
        there = torch.from_numpy(self.w).cuda()
        self.packed = torch.zeros(gpu.packed_bytes_gemm_s8(n, k), dtype=torch.uint8, device="cuda")
        self.col_sum = torch.zeros(n, dtype=torch.int32, device="cuda")
        self.col_scale = torch.from_numpy(self.scale).cuda()
        gpu.pack_gemm_s8(
            n=n, k=k, w=there.data_ptr(), ldw=k, packed=self.packed.data_ptr(), col_sum=self.col_sum.data_ptr(),
            stream=stream(),
        )  # fmt: skip


def padded_rows(q: np.ndarray) -> Tensor:
    """q [m, k] uint8 with k zero padded to a multiple of 64, on the device."""
    m, k = q.shape
    rows = torch.zeros(m, -(-k // 64) * 64, dtype=torch.uint8)
    rows[:, :k] = torch.from_numpy(q)
    return rows.cuda()


@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 64), (17, 70), (63, 129), (130, 1000), (257, 4096)])
def test_packing_is_undone(gpu: ModuleType, rng: np.random.Generator, n: int, k: int) -> None:
    weight = Weight(gpu, rng, n, k)
    back = torch.empty(n, k, dtype=torch.int8, device="cuda")
    gpu.unpack_gemm_s8(n=n, k=k, packed=weight.packed.data_ptr(), w=back.data_ptr(), ldw=k, stream=stream())
    assert np.array_equal(back.cpu().numpy(), weight.w)
    assert np.array_equal(weight.col_sum.cpu().numpy(), weight.w.astype(np.int32).sum(1))


@pytest.mark.parametrize("tile", range(-1, TILES))
@pytest.mark.parametrize("splits", [1, 3, 8])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (17, 70, 130), (65, 129, 1000), (200, 300, 2048)])
def test_sums_are_exact(
    gpu: ModuleType, rng: np.random.Generator, tile: int, splits: int, m: int, n: int, k: int
) -> None:
    weight = Weight(gpu, rng, n, k)
    q = rng.integers(0, 256, (m, k), dtype=np.uint8)
    rows = padded_rows(q)
    workspace = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")
    for _ in range(2):  # the second call finds the workspace as the first left it
        sums = torch.full((m, n), -77, dtype=torch.int32, device="cuda")
        epilogue = gpu.Epilogue(y=0, ldy=n, dtype=0, sums=sums.data_ptr())
        gpu.gemm_s8(
            m=m, n=n, k=k, a=rows.data_ptr(), lda=rows.shape[1], packed=weight.packed.data_ptr(), epilogue=epilogue,
            workspace=workspace.data_ptr(), workspace_bytes=workspace.numel(), tile=tile, splits=splits,
            stream=stream(),
        )  # fmt: skip
        assert np.array_equal(sums.cpu().numpy(), reference.gemm(q, weight.w))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 70, 130), (8, 129, 1000), (16, 300, 4096)])
def test_weight_only_rows(
    gpu: ModuleType, rng: np.random.Generator, dtype: torch.dtype, m: int, n: int, k: int
) -> None:
    weight = Weight(gpu, rng, n, k)
    x = torch.randn(m, k, device="cuda").to(dtype)
    y = torch.full((m, n), float("nan"), device="cuda", dtype=dtype)
    epilogue = gpu.Epilogue(y=y.data_ptr(), ldy=n, dtype=DTYPES[dtype], col_scale=weight.col_scale.data_ptr())
    size = gpu.gemm_s8_skinny_workspace_bytes(m, n, k)
    workspace = torch.zeros(max(size, 1), dtype=torch.uint8, device="cuda")
    gpu.gemm_s8_skinny(
        m=m, n=n, k=k, x=x.data_ptr(), ldx=k, packed=weight.packed.data_ptr(), epilogue=epilogue,
        workspace=workspace.data_ptr(), workspace_bytes=size, stream=stream(),
    )  # fmt: skip
    exact = x.double().cpu().numpy() @ weight.w.T.astype(np.float64) * weight.scale
    magnitude = np.abs(x.double().cpu().numpy()) @ np.abs(weight.w.T.astype(np.float64)) * weight.scale
    # The bound of csrc/kernels/cuda/gemm_s8_skinny.cu, a scaling, and one rounding to the dtype.
    bound = (k + 2) * 2.0**-22 * magnitude + torch.finfo(dtype).eps / 2 * np.abs(exact) * 1.01 + 1e-7
    assert (np.abs(y.double().cpu().numpy() - exact) <= bound).all()


def test_a_wrong_argument_is_an_error_of_tersor(gpu: ModuleType) -> None:
    from tersor.errors import TersorError

    with pytest.raises(TersorError, match="pack_gemm_s8: CUDA says 'invalid argument'"):
        gpu.pack_gemm_s8(n=0, k=1, w=0, ldw=1, packed=0, col_sum=0, stream=0)

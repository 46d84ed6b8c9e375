"""The sparse and low-rank CUDA launchers on torch memory: exact integers, derived bounds for sums in float."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy_reference as reference
import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.usefixtures("gpu")
SHAPES = [(1, 1, 1), (5, 17, 70), (16, 64, 128), (33, 130, 1000), (129, 200, 2048)]
EPS = 2.0**-22  # of a sum in float32 by a matrix instruction, per term; generous for one in plain float32


def stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def on_gpu(*arrays: np.ndarray[Any, Any]) -> list[Tensor]:
    """Copies, in 8-bit form where torch lacks the dtype, and never empty."""
    return [torch.from_numpy(np.append(a.reshape(-1).view(np.uint8), np.uint8(0))).cuda() for a in arrays]


def padded(rows: np.ndarray[Any, Any]) -> Tensor:
    """[m, k] with k zero padded to a multiple of 64, on the device."""
    wide = np.zeros((rows.shape[0], -(-rows.shape[1] // 64) * 64), rows.dtype)
    wide[:, : rows.shape[1]] = rows
    return torch.from_numpy(wide).cuda()


def pruned_24(rng: np.random.Generator, w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """At most 2 of every 4 columns are kept."""
    n, k = w.shape
    order = rng.random((n, -(-k // 4), 4)).argsort(2)
    return w * (order < 2).reshape(n, -1)[:, :k].astype(w.dtype)


class Case:
    """Quantised rows [m, k] and an int8 weight [n, k]; `check` runs a launcher and compares its integers."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int, int], density: float = 1.0) -> None:
        self.m, self.n, self.k = shape
        self.q = rng.integers(0, 256, (self.m, self.k), dtype=np.uint8)
        self.w, self.scale = reference.weight(rng, self.n, self.k)
        self.w[rng.random(self.w.shape) >= density] = 0

    def check(self, gpu: ModuleType, launcher: str, **operands: Tensor) -> None:
        rows = padded(self.q)
        sums = torch.full((self.m, self.n), -77, dtype=torch.int32, device="cuda")
        getattr(gpu, launcher)(
            m=self.m, n=self.n, k=self.k, a=rows.data_ptr(), lda=rows.shape[1],
            epilogue=gpu.Epilogue(y=0, ldy=self.n, dtype=0, sums=sums.data_ptr()), stream=stream(),
            **{name: tensor.data_ptr() for name, tensor in operands.items()},
        )  # fmt: skip
        assert np.array_equal(sums.cpu().numpy(), reference.gemm(self.q, self.w))


@pytest.mark.parametrize("shape", SHAPES)
def test_2_4_int8(gpu: ModuleType, rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
    case = Case(rng, shape)
    case.w = pruned_24(rng, case.w)
    values, metadata = on_gpu(*gpu.pack_sparse24_s8(case.w))
    case.check(gpu, "sparse24_s8", values=values, metadata=metadata)


@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_unstructured_int8(
    gpu: ModuleType, rng: np.random.Generator, shape: tuple[int, int, int], density: float
) -> None:
    case = Case(rng, shape, density)
    bitmap, values, offsets = on_gpu(*gpu.pack_bitmap_s8(case.w))
    case.check(gpu, "bitmap_s8", bitmap=bitmap, values=values, offsets=offsets)
    for form in ("block", "csr"):
        values, row_offsets, columns = on_gpu(*getattr(gpu, f"pack_{form}_s8")(case.w))
        case.check(gpu, f"{form}_s8", values=values, row_offsets=row_offsets, column_indices=columns)


@pytest.mark.parametrize("shape", SHAPES)
def test_2_4_float16(gpu: ModuleType, rng: np.random.Generator, shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    w = pruned_24(rng, rng.standard_normal((n, k)).astype(np.float16))
    x = rng.standard_normal((m, k)).astype(np.float16)
    values, metadata = on_gpu(*gpu.pack_sparse24_f16(w.view(np.uint16)))
    rows, y = padded(x), torch.full((m, n), float("nan"), device="cuda")
    gpu.sparse24_f16(
        m=m, n=n, k=k, a=rows.data_ptr(), lda=rows.shape[1], values=values.data_ptr(), metadata=metadata.data_ptr(),
        epilogue=gpu.Epilogue(y=y.data_ptr(), ldy=n, dtype=0), stream=stream(),
    )  # fmt: skip
    close(y, x, w)


@pytest.mark.parametrize("density", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_csr_float32(gpu: ModuleType, rng: np.random.Generator, shape: tuple[int, int, int], density: float) -> None:
    m, n, k = shape
    w = rng.standard_normal((n, k)).astype(np.float32) * (rng.random((n, k)) < density).astype(np.float32)
    x = rng.standard_normal((m, k)).astype(np.float32)
    values, row_offsets, columns = on_gpu(*gpu.pack_csr_f32(w))
    rows, y = padded(x), torch.full((m, n), float("nan"), device="cuda")
    gpu.csr_f32(
        m=m, n=n, k=k, a=rows.data_ptr(), lda=rows.shape[1], values=values.data_ptr(),
        row_offsets=row_offsets.data_ptr(), column_indices=columns.data_ptr(),
        epilogue=gpu.Epilogue(y=y.data_ptr(), ldy=n, dtype=0), stream=stream(),
    )  # fmt: skip
    close(y, x, w)


def close(y: Tensor, x: np.ndarray[Any, Any], w: np.ndarray[Any, Any]) -> None:
    """y against x W^T in float64, within what sums of k terms in float32 may lose."""
    wide_x, wide_w = x.astype(np.float64), w.astype(np.float64)
    bound = (x.shape[1] + 2) * EPS * (np.abs(wide_x) @ np.abs(wide_w).T)
    assert (np.abs(y.cpu().numpy() - wide_x @ wide_w.T) <= bound).all()


@pytest.mark.parametrize("rank", [1, 24, 64, 200])
@pytest.mark.parametrize("shape", SHAPES)
def test_low_rank_int8_is_linear_s8_twice(
    gpu: ModuleType, rng: np.random.Generator, shape: tuple[int, int, int], rank: int
) -> None:
    m, n, k = shape
    x = rng.standard_normal((m, k)).astype(np.float32)
    down, down_scale = reference.weight(rng, rank, k)
    up, up_scale = reference.weight(rng, n, rank)
    bias = rng.standard_normal(n).astype(np.float32)
    q, row_scale, row_zero = reference.quantize_rows(x)
    rows, wide_down, wide_up, y = padded(q), padded(down), padded(up), torch.full((m, n), float("nan"), device="cuda")
    scales = [torch.from_numpy(a).cuda() for a in (row_scale, down_scale, up_scale, bias)]
    sums = [
        torch.from_numpy(a).cuda() for a in (row_zero, *(w.astype(np.int32).sum(1, dtype=np.int32) for w in (down, up)))
    ]
    gpu.lowrank_s8(
        m=m, n=n, k=k, rank=rank, x=rows.data_ptr(), ldx=rows.shape[1], down=wide_down.data_ptr(),
        up=wide_up.data_ptr(), down_scale=scales[1].data_ptr(), down_sum=sums[1].data_ptr(),
        epilogue=gpu.Epilogue(
            y=y.data_ptr(), ldy=n, dtype=0, row_scale=scales[0].data_ptr(), row_zero=sums[0].data_ptr(),
            col_scale=scales[2].data_ptr(), col_sum=sums[2].data_ptr(), bias=scales[3].data_ptr(),
        ),
        stream=stream(),
    )  # fmt: skip
    expected = reference.linear(reference.linear(x, down, down_scale), up, up_scale, bias)
    assert np.array_equal(y.cpu().numpy(), expected)


@pytest.mark.parametrize("rank", [1, 24, 64, 200])
@pytest.mark.parametrize("shape", SHAPES)
def test_low_rank_float16(gpu: ModuleType, rng: np.random.Generator, shape: tuple[int, int, int], rank: int) -> None:
    m, n, k = shape
    x, down, up = ((rng.standard_normal(s) / 4).astype(np.float16) for s in ((m, k), (rank, k), (n, rank)))
    rows, wide_down, wide_up = torch.from_numpy(x).cuda(), padded(down), padded(up)
    y = torch.full((m, n), float("nan"), device="cuda")
    gpu.lowrank_f16(
        m=m, n=n, k=k, rank=rank, x=rows.data_ptr(), ldx=k, down=wide_down.data_ptr(), up=wide_up.data_ptr(),
        epilogue=gpu.Epilogue(y=y.data_ptr(), ldy=n, dtype=0), stream=stream(),
    )  # fmt: skip
    wide = [a.astype(np.float64) for a in (x, down, up)]
    h, magnitude = wide[0] @ wide[1].T, np.abs(wide[0]) @ np.abs(wide[1]).T
    # h is summed in float32 and rounded to float16, with its smallest unit; y is summed in float32.
    h_error = (k + 2) * EPS * magnitude + 2.0**-11 * np.abs(h) * 1.01 + 2.0**-24
    bound = h_error @ np.abs(wide[2]).T + (rank + 2) * EPS * ((np.abs(h) + h_error) @ np.abs(wide[2]).T)
    assert (np.abs(y.cpu().numpy() - h @ wide[2].T) <= bound).all()

"""The weight quantiser against its formula in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tersor.quantize import ROW_MULTIPLE, block_rows, dequantize_s8, quantize_s8, quantize_s8_blocks

TINY = np.finfo(np.float32).tiny
LARGEST = np.nextafter(np.float32(np.finfo(np.float32).max / 127), np.float32(0))


def reference(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    w = w.astype(np.float32)
    peak = np.abs(w).max(axis=1)
    scale = np.where(peak > 0, np.clip(peak / np.float32(127), TINY, LARGEST), np.float32(1)).astype(np.float32)
    q = np.clip(np.rint(w / scale[:, None]), -127, 127)
    return q.astype(np.int8), scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 7), (64, 33), (129, 384)])
def test_equals_the_formula(n: int, k: int, dtype: torch.dtype) -> None:
    w = (torch.randn(n, k, generator=torch.Generator().manual_seed(n)) * 3).to(dtype)
    q, scale = quantize_s8(w)
    expected_q, expected_scale = reference(w.float().numpy())
    assert np.array_equal(q.numpy(), expected_q)
    assert np.array_equal(scale.numpy(), expected_scale)
    assert q.dtype == torch.int8
    error = (dequantize_s8(q, scale).double() - w.double()).abs()
    assert torch.all(error <= scale.double()[:, None] / 2 * (1 + 2.0**-15))


def test_ties_go_to_even_and_peaks_to_127() -> None:
    w = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5], [-127.0, 3.5, 4.5, 0, 0, 0]])
    q, scale = quantize_s8(w)
    assert scale.tolist() == [1.0, 1.0]
    assert q.tolist() == [[127, 0, 2, 2, 0, -2], [-127, 4, 4, 0, 0, 0]]


def test_rows_of_zeros_and_of_the_smallest_and_largest_numbers() -> None:
    info = torch.finfo(torch.float32)
    w = torch.tensor([[0.0, 0.0], [info.smallest_normal * 2.0**-20, 0.0], [info.max, -info.max], [1e-38, -1e-38]])
    q, scale = quantize_s8(w)
    assert scale[0] == 1
    assert torch.all(scale >= info.tiny)
    assert torch.isfinite(dequantize_s8(q, scale)).all()
    assert q[0].tolist() == [0, 0]
    assert q[2].tolist() == [127, -127]
    assert np.array_equal(q.numpy(), reference(w.numpy())[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_an_error_that_names_the_row(bad: float) -> None:
    w = torch.zeros(3 * ROW_MULTIPLE, 1 << 14)
    w[2 * ROW_MULTIPLE + 5, 7] = bad
    with pytest.raises(ValueError, match=rf"NaN or infinity, first in row {2 * ROW_MULTIPLE + 5}"):
        list(quantize_s8_blocks(w))


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.int8), torch.zeros(2, 2, 2)])
def test_only_float_matrices(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="2-d floating-point"):
        quantize_s8(bad)


def test_blocks_put_together_equal_the_whole() -> None:
    w = torch.randn(1000, 1 << 13)[:, ::2]
    blocks = list(quantize_s8_blocks(w))
    assert len(blocks) > 2
    assert [begin % ROW_MULTIPLE for begin, _, _ in blocks] == [0] * len(blocks)
    q, scale = quantize_s8(w)
    assert torch.equal(torch.cat([b for _, b, _ in blocks]), q)
    assert torch.equal(torch.cat([s for _, _, s in blocks]), scale)


@pytest.mark.parametrize("k", [1, 100, 1 << 14, 1 << 20, 1 << 26])
def test_block_rows(k: int) -> None:
    rows = block_rows(k)
    assert rows % ROW_MULTIPLE == 0
    assert rows == ROW_MULTIPLE or rows * k <= 1 << 20

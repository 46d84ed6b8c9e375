"""torch.ops.tersor.spmm_f32: what the NumPy kernel gives, for every rank, dtype and layout; compilers; errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from packed_weight import DTYPES, NONE, check
from torch import Tensor, nn

from tersor import kernels
from tersor.ops import ACTIVATIONS, SPMM_F32

N, K = 45, 70


@pytest.fixture
def packed(rng: np.random.Generator) -> Tensor:
    torch.manual_seed(3)
    weight = rng.standard_normal((N, K)).astype(np.float32)
    return torch.from_numpy(kernels.pack_sparse_f32(weight * (rng.random((N, K)) < 0.3)))


def expected(packed: Tensor, x: Tensor, bias: Tensor = NONE, residual: Tensor = NONE, activation: str = "none") -> Any:
    """The kernel on NumPy's float32, rounded to the dtype of x."""
    rows, added = (
        t.float().contiguous().reshape(-1, t.shape[-1]).numpy() if t.numel() else None for t in (x, residual)
    )
    bias_array = bias.float().numpy() if bias.numel() else None
    y = kernels.spmm_f32(rows, packed.numpy(), bias_array, added, activation)
    return torch.from_numpy(y).reshape(*x.shape[:-1], N).to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(K,), (1, K), (37, K), (1, 2, 1, 29, K)])
def test_every_rank_dtype_and_activation(packed: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, bias, residual = torch.randn(shape).to(dtype), torch.randn(N), torch.randn(*shape[:-1], N).to(dtype)
    check(SPMM_F32(x, packed, NONE, NONE, N, 0), expected(packed, x))
    for name, code in ACTIVATIONS.items():
        check(SPMM_F32(x, packed, bias, residual, N, code), expected(packed, x, bias, residual, name))
    assert SPMM_F32(x[..., :0, :] if len(shape) > 1 else torch.empty(0, K), packed, NONE, NONE, N, 0).numel() == 0


def test_strides(packed: Tensor) -> None:
    for x in (torch.randn(K, 6).t(), torch.randn(12, 2 * K)[::2, 3 : 3 + K], torch.randn(1, K).expand(7, K)):
        check(SPMM_F32(x, packed, NONE, NONE, N, 0), expected(packed, x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(packed: Tensor, dtype: torch.dtype) -> None:
    x, residual = torch.randn(2, 3, K).to(dtype), torch.randn(2, 3, N).to(dtype)
    torch.library.opcheck(SPMM_F32, (x, packed, torch.randn(N), residual, N, 1))
    torch.library.opcheck(SPMM_F32, (x.transpose(0, 1), packed, NONE, NONE, N, 0))


def test_compile_and_export(packed: Tensor) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = SPMM_F32(x * 2, packed, NONE, NONE, N, ACTIVATIONS["relu"])
            return y + 1

    model, x = Model(), torch.randn(5, K)
    assert torch.equal(torch.compile(model, fullgraph=True)(x), model(x))
    batch = torch.export.Dim("batch", min=2, max=1024)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    assert torch.equal(program.module()(torch.cat([x, x])), model(torch.cat([x, x])))


def test_wrong_arguments(packed: Tensor) -> None:
    x, meta = torch.randn(2, K), torch.empty(2, K, device="meta", dtype=torch.float64)
    for arguments, message in [
        ((x.double(), packed, NONE, NONE, N, 0), "spmm_f32: x: expected float32, bfloat16 or float16, got float64"),
        ((x[:, 1:], packed, NONE, NONE, N, 0), rf"spmm_f32: x: expected shape \[..., {K}\]"),
        ((x, packed, NONE, NONE, N + 1, 0), f"spmm_f32: out_features: the packed weight has {N}"),
        ((x, packed[:-1], NONE, NONE, N, 0), "sparse float"),
        ((x, packed, NONE, NONE, N, 5), "activation"),
        ((x.to_sparse(), packed, NONE, NONE, N, 0), "spmm_f32: x: expected a dense tensor"),
        ((meta, packed.to("meta"), NONE, NONE, N, 0), "spmm_f32: x: expected float32, bfloat16 or float16, got torch"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            SPMM_F32(*arguments)

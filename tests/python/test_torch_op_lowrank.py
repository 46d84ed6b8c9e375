"""torch.ops.tersor.lowrank_f32 and lowrank_s8: what the NumPy kernels give, every rank and dtype; compilers; errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tersor import kernels
from tersor.ops import ACTIVATIONS, LOWRANK_F32, LOWRANK_S8

N, K, RANK = 33, 70, 20
NONE = torch.empty(0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()


def floats(*shape: int) -> np.ndarray:
    return torch.randn(shape).numpy()


def integers(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return torch.randint(-127, 128, (n, k), dtype=torch.int8).numpy(), (torch.rand(n) / 64 + 1e-3).numpy()


def packed_f32() -> Tensor:
    return torch.from_numpy(kernels.pack_lowrank_f32(floats(RANK, K), floats(N, RANK)))


def packed_s8(dense: bool = False) -> Tensor:
    beside = integers(N, K) if dense else (None, None)
    return torch.from_numpy(kernels.pack_lowrank_s8(*integers(RANK, K), *integers(N, RANK), None, *beside))


@pytest.mark.parametrize("shape", [(K,), (1, K), (5, K), (2, 3, K), (0, K)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_numpy_kernels(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, bias = torch.randn(shape).to(dtype), torch.randn(N)
    residual = torch.randn(*shape[:-1], N).to(dtype)
    rows, added = x.float().reshape(-1, K).numpy(), residual.float().reshape(-1, N).numpy()
    for activation, code in ACTIVATIONS.items():
        f32, s8 = packed_f32(), packed_s8(dense=code % 2 == 1)
        expected = kernels.lowrank_f32(rows, f32.numpy(), bias.numpy(), added, activation)
        y = LOWRANK_F32(x, f32, bias, residual, N, code)
        assert torch.equal(y, torch.from_numpy(expected).reshape(y.shape).to(dtype))
        expected = kernels.lowrank_s8(rows, s8.numpy(), bias.numpy(), added, activation)
        y = LOWRANK_S8(x, s8, bias, residual, N, code, 0.0, 0)
        assert torch.equal(y, torch.from_numpy(expected).reshape(y.shape).to(dtype))


def test_strided_input_and_static_range() -> None:
    x, s8 = torch.randn(K, 6).t(), packed_s8()
    expected = kernels.lowrank_s8(x.contiguous().numpy(), s8.numpy(), None, None, "none", 0.03, 110)
    assert torch.equal(LOWRANK_S8(x, s8, NONE, NONE, N, 0, 0.03, 110), torch.from_numpy(expected))


def test_opcheck_compile_and_export() -> None:
    x, bias, f32, s8 = torch.randn(4, K), torch.randn(N), packed_f32(), packed_s8()
    calls = [(LOWRANK_F32, (x, f32, bias, NONE, N, 1)), (LOWRANK_S8, (x, s8, bias, NONE, N, 2, 0.0, 0))]
    for op, args in calls:
        torch.library.opcheck(op, args)

    class Both(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return LOWRANK_S8(x, s8, bias, NONE, N, 2, 0.0, 0) + LOWRANK_F32(x, f32, bias, NONE, N, 1)

    module = Both()
    expected = module(x)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(x), expected)
    assert torch.equal(torch.export.export(module, (x,)).module()(x), expected)


def test_errors_name_expected_and_got() -> None:
    x, f32, s8 = torch.randn(2, K), packed_f32(), packed_s8()
    for args, message in [
        ((x.double(), f32, NONE, NONE, N, 0), "lowrank_f32: x: expected float32, bfloat16 or float16, got float64"),
        ((x[:, 1:], f32, NONE, NONE, N, 0), rf"lowrank_f32: x: expected shape \[..., {K}\]"),
        ((x, f32, NONE, NONE, N + 1, 0), f"lowrank_f32: out_features: the packed weight has {N}"),
        ((x, s8, NONE, NONE, N, 0), "packed low-rank float weight: these bytes are not one"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            LOWRANK_F32(*args)
    with pytest.raises(RuntimeError, match="packed low-rank int8 weight"):
        LOWRANK_S8(x, s8[:-64], NONE, NONE, N, 0, 0.0, 0)
    with pytest.raises(RuntimeError, match="x_scale"):
        LOWRANK_S8(x, s8, NONE, NONE, N, 0, -1.0, 0)

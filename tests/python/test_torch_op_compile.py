"""torch.ops.tersor.linear_s8 and spmm_s8 under opcheck, fake tensors, torch.compile and torch.export."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packed_weight import DTYPES, NONE, OPS, PackedWeight
from torch import Tensor, nn

from tersor.ops import ACTIVATIONS

N, K = 45, 70


@pytest.fixture(params=OPS)
def weight(rng: np.random.Generator, request: pytest.FixtureRequest) -> PackedWeight:
    torch.manual_seed(3)
    return PackedWeight(rng, N, K, request.param)


class Model(nn.Module):
    """Two ops in a row with a float op between them."""

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        self.n, self.op = weight.n, weight.op
        self.register_buffer("packed", weight.packed)
        self.register_buffer("bias", torch.randn(weight.n))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.op(x, self.packed, self.bias, NONE, self.n, ACTIVATIONS["gelu"], 0.0, 0)
        return self.op(hidden * 2, self.packed, NONE, hidden, self.n, ACTIVATIONS["none"], 0.0, 0)


@pytest.fixture(params=OPS)
def model(rng: np.random.Generator, request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(4)
    return Model(PackedWeight(rng, K, K, request.param))


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(weight: PackedWeight, dtype: torch.dtype) -> None:
    calls = [
        (torch.randn(3, K).to(dtype), torch.randn(N), NONE),
        (torch.randn(2, 3, K).to(dtype), NONE, torch.randn(2, 3, N).to(dtype)),
        (torch.randn(K, 4).to(dtype).t(), torch.randn(N).to(dtype), NONE),
        (torch.randn(0, K).to(dtype), NONE, NONE),
    ]
    for x, bias, residual in calls:
        torch.library.opcheck(weight.op, (x, weight.packed, bias, residual, N, 1, 0.0, 0))


def test_the_fake_kernel_has_the_shapes_and_refusals_of_the_real_one(weight: PackedWeight) -> None:
    packed = weight.packed.to("meta")
    fake = weight.op(torch.empty(5, 3, K, device="meta", dtype=torch.float16), packed, NONE, NONE, N, 0, 0.0, 0)
    assert (fake.shape, fake.dtype, fake.device.type) == ((5, 3, N), torch.float16, "meta")
    with pytest.raises(RuntimeError, match="expected float32, bfloat16 or float16, got torch"):
        weight.op(torch.empty(5, K, device="meta", dtype=torch.float64), packed, NONE, NONE, N, 0, 0.0, 0)


def test_compile_without_graph_breaks_and_with_any_batch(model: Model) -> None:
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for batch in (2, 3, 17):
            x = torch.randn(batch, 4, K)
            assert torch.equal(compiled(x), model(x))


def test_compile_with_inductor(model: Model) -> None:
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(3, K)
    with torch.no_grad():
        assert torch.equal(compiled(x), model(x))


def test_export_with_a_dynamic_batch(model: Model) -> None:
    batch = torch.export.Dim("batch", min=1, max=1024)
    exported = torch.export.export(model, (torch.randn(3, K),), dynamic_shapes=({0: batch},))
    assert str(model.op) in str(exported.graph)
    for rows in (1, 8, 100):
        x = torch.randn(rows, K)
        assert torch.equal(exported.module()(x), model(x))

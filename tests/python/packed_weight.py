"""A random packed weight with the op on it and the definition of what the op returns."""

from __future__ import annotations

import numpy as np
import numpy_reference as reference
import torch
from numpy.typing import NDArray
from torch import Tensor

from tersor import kernels
from tersor.nn.cuda_weight import to_cuda
from tersor.ops import ACTIVATIONS, LINEAR_S8, SPMM_S8

NONE = torch.empty(0)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPS = {"linear_s8": (LINEAR_S8, kernels.pack_s8), "spmm_s8": (SPMM_S8, kernels.pack_sparse_s8)}


class PackedWeight:
    """A [n, k] weight on a device; calling it calls the op there, `expected` says what must come out.

    Two thirds of it are 0 in spmm_s8.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        n: int,
        k: int,
        op: str = "linear_s8",
        device: str = "cpu",
        *,
        w: NDArray[np.int8] | None = None,
        input_scale: NDArray[np.float32] | None = None,
    ) -> None:
        self.n, self.k, self.device, self.input_scale = n, k, device, input_scale
        self.w, self.scale = reference.weight(rng, n, k)
        self.op, pack = OPS[op]
        if w is not None:
            self.w = w
        elif op == "spmm_s8":
            self.w[rng.random((n, k)) < 2 / 3] = 0
        self.packed = torch.from_numpy(pack(self.w, self.scale, input_scale))
        if device == "cuda":
            self.packed = to_cuda(self.packed, n, k, torch.device(device))

    def __call__(
        self,
        x: Tensor,
        bias: Tensor = NONE,
        residual: Tensor = NONE,
        activation: str = "none",
        x_scale: float = 0.0,
        x_zero_point: int = 0,
    ) -> Tensor:
        code = ACTIVATIONS[activation]
        x, bias, residual = x.to(self.device), bias.to(self.device), residual.to(self.device)
        y: Tensor = self.op(x, self.packed, bias, residual, self.n, code, x_scale, x_zero_point)
        return y

    def expected(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        activation: str = "none",
        x_scale: float = 0.0,
        x_zero_point: int = 0,
    ) -> Tensor:
        """The definition in float32, rounded to the dtype of x."""
        rows = x.float().contiguous().numpy().reshape(-1, self.k)
        y = reference.linear(
            rows if self.input_scale is None else rows * self.input_scale,
            self.w,
            self.scale,
            None if bias is None else bias.float().contiguous().numpy(),
            None if residual is None else residual.float().contiguous().numpy().reshape(-1, self.n),
            x_scale,
            x_zero_point,
        )
        return torch.from_numpy(kernels.activate(activation, y)).reshape(*x.shape[:-1], self.n).to(x.dtype)


def check(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == expected.dtype
    assert got.is_contiguous()
    assert torch.equal(got.cpu(), expected)

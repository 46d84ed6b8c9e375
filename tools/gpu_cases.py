"""What gpu_bench times: tersor's kernels, and what else does the same product on the same GPU."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tersor import kernels
from tersor.nn import Int8Linear
from tersor.ops import LINEAR_S8

Shape = tuple[int, int, int]  # m, n, k
Call = Callable[[], Any]
NOTHING = torch.empty(0)


@dataclasses.dataclass(frozen=True)
class Case:
    """One product x [m, k] times W [n, k] by one kernel.

    Attributes:
        make: a call with a weight of its own.
        error: how far the result is from the right one; 0 where integers have to be exact.
        bytes: that have to move: weight, input, output, once each.
    """

    op: str
    dtype: str
    shape: Shape
    kernel: str
    make: Callable[[], Call]
    weight_bytes: int
    bytes: int
    operations: int
    error: Callable[[], float | None] = lambda: None
    integer: bool = True
    sparsity: float = 0.0
    rank: int | None = None


def _bytes(shape: Shape, weight: int, element_in: int = 2) -> int:
    m, n, k = shape
    return weight + m * k * element_in + m * n * 2


@functools.lru_cache(maxsize=1)
def _layer(n: int, k: int, device: str) -> Int8Linear:
    linear = torch.nn.Linear(k, n, bias=False)
    layer = Int8Linear.from_float(linear)
    return layer.to(device)


def linear_s8(shape: Shape, device: str) -> Case:
    """The torch op: quantising the rows, multiplying, finishing. bfloat16 in and out."""
    m, n, k = shape
    x = torch.randn(m, k, device=device).bfloat16()
    first = _layer(n, k, device)

    def make() -> Call:
        packed = first.packed.clone()
        return lambda: LINEAR_S8(x, packed, NOTHING, NOTHING, n, 0, 0.0, 0)

    def error() -> float:
        exact = x.double() @ first.weight.clone().double().t()
        got = make()().double()
        return float((got - exact).norm() / exact.norm())

    size = n * k
    return Case("linear_s8", "bfloat16", shape, "torch op", make, size, _bytes(shape, size), 2 * m * n * k, error)


def _cuda_rows(shape: Shape) -> tuple[Any, Int8Linear, Tensor, Tensor, Any]:
    m, n, k = shape
    gpu, layer = kernels.cuda(), _layer(n, k, "cuda")
    depth = -(-k // gpu.DEPTH_PAD) * gpu.DEPTH_PAD
    q = torch.zeros(m, depth, dtype=torch.uint8, device="cuda")
    q[:, :k] = torch.randint(0, 256, (m, k), dtype=torch.uint8, device="cuda")
    row_scale = torch.rand(m, device="cuda") + 0.5
    return gpu, layer, q, row_scale, torch.zeros(m, dtype=torch.int32, device="cuda")


def gemm_s8(shape: Shape, device: str) -> Case | None:
    """The product of quantised rows alone, with its epilogue."""
    if device != "cuda":
        return None
    m, n, k = shape
    gpu, layer, q, row_scale, row_zero = _cuda_rows(shape)
    y = torch.empty(m, n, dtype=torch.bfloat16, device="cuda")
    sums = torch.empty(m, n, dtype=torch.int32, device="cuda")
    size = gpu.gemm_s8_workspace_bytes(m, n, k)
    workspace = torch.zeros(max(size, 16), dtype=torch.uint8, device="cuda")
    panels_at = 2 * (-(-4 * n // 256) * 256)

    def call(packed: Tensor, into: Tensor | None) -> Call:
        address = packed.data_ptr()
        epilogue = gpu.Epilogue(
            y=y.data_ptr(), ldy=n, dtype=1, row_scale=row_scale.data_ptr(), row_zero=row_zero.data_ptr(),
            col_scale=address, col_sum=address + panels_at // 2, sums=0 if into is None else into.data_ptr(),
        )  # fmt: skip

        def run(keep: Tensor = packed) -> None:
            gpu.gemm_s8(
                m=m, n=n, k=k, a=q.data_ptr(), lda=q.shape[1], packed=keep.data_ptr() + panels_at,
                epilogue=epilogue, workspace=workspace.data_ptr(), workspace_bytes=size,
                stream=torch.cuda.current_stream().cuda_stream,
            )  # fmt: skip

        return run

    def error() -> float:
        call(layer.packed, sums)()
        w = layer.canonical_tensors()["weight_q"].cuda()
        rows = min(m, 64)
        exact = q[:rows, :k].double() @ w.double().t()
        return float((sums[:rows].double() - exact).abs().max())

    weight = n * k
    return Case(
        "gemm_s8", "uint8", shape, "gemm_s8", lambda: call(layer.packed.clone(), None), weight,
        _bytes(shape, weight, 1), 2 * m * n * k, error,
    )  # fmt: skip


def gemm_s8_skinny(shape: Shape, device: str) -> Case | None:
    """Weight-only int8: bfloat16 rows as they are."""
    m, n, k = shape
    if device != "cuda" or m > kernels.cuda().SKINNY_ROWS:
        return None
    gpu, layer = kernels.cuda(), _layer(n, k, "cuda")
    x = torch.randn(m, k, device="cuda").bfloat16()
    y = torch.empty(m, n, dtype=torch.bfloat16, device="cuda")
    size = gpu.gemm_s8_skinny_workspace_bytes(m, n, k)
    workspace = torch.zeros(max(size, 16), dtype=torch.uint8, device="cuda")
    panels_at = 2 * (-(-4 * n // 256) * 256)

    def make(source: Tensor | None = None) -> Call:
        packed = layer.packed.clone() if source is None else source
        epilogue = gpu.Epilogue(y=y.data_ptr(), ldy=n, dtype=1, col_scale=packed.data_ptr())

        def run(keep: Tensor = packed) -> None:
            gpu.gemm_s8_skinny(
                m=m, n=n, k=k, x=x.data_ptr(), ldx=k, packed=keep.data_ptr() + panels_at, epilogue=epilogue,
                workspace=workspace.data_ptr(), workspace_bytes=size, stream=torch.cuda.current_stream().cuda_stream,
            )  # fmt: skip

        return run

    def error() -> float:
        make(layer.packed)()
        exact = x.double() @ layer.weight.clone().double().t()
        return float((y.double() - exact).norm() / exact.norm())

    weight = n * k
    return Case(
        "gemm_s8_skinny", "bfloat16", shape, "gemm_s8_skinny", make, weight, _bytes(shape, weight), 2 * m * n * k,
        error, integer=False,
    )  # fmt: skip


CASES: list[Callable[[Shape, str], Case | None]] = [linear_s8, gemm_s8, gemm_s8_skinny]


# --- Rivals.


def _random_float(shape: Shape, device: str) -> tuple[Tensor, Callable[[], Tensor]]:
    m, n, k = shape
    x = torch.randn(m, k, device=device).bfloat16()
    w = torch.randn(n, k, device=device).bfloat16()
    return x, w.clone


def _int_mm(shape: Shape, device: str) -> Callable[[], Call]:
    """cublasLt's int8 product with int32 out, nothing else: the rows are padded to the 32 that it asks for."""
    m, n, k = shape
    x = torch.randint(-127, 128, (max(m, 32), k), dtype=torch.int8, device=device)
    w = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)

    def make() -> Call:
        weight = w.clone()
        return lambda: torch._int_mm(x, weight.t())

    return make


def _semi_structured(shape: Shape, device: str, dtype: torch.dtype) -> Callable[[], Call]:
    """torch's 2:4 on cuSPARSELt."""
    m, n, k = shape
    mask = torch.tensor([1, 0, 0, 1], device=device).repeat(n, k // 4)
    if dtype is torch.int8:
        w = torch.randint(1, 127, (n, k), dtype=torch.int8, device=device) * mask.to(torch.int8)
        x = torch.randint(-127, 128, (max(m, 32), k), dtype=torch.int8, device=device)
    else:
        w, x = (torch.randn(n, k, device=device) * mask).to(dtype), torch.randn(max(m, 32), k, device=device).to(dtype)

    def make() -> Call:
        sparse = torch.sparse.to_sparse_semi_structured(w)
        return lambda: torch.nn.functional.linear(x, sparse)

    return make


def rivals(shape: Shape, device: str) -> Iterator[Case]:
    """Others' kernels for the same product."""
    m, n, k = shape
    x, weight = _random_float(shape, device)

    def bf16() -> Call:
        w = weight()
        return lambda: torch.nn.functional.linear(x, w)

    operations = 2 * m * n * k
    yield Case("linear", "bfloat16", shape, "torch bf16", bf16, 2 * n * k, _bytes(shape, 2 * n * k), operations,
               integer=False)  # fmt: skip
    yield Case("int_mm", "int8", shape, "torch._int_mm", _int_mm(shape, device), n * k, _bytes(shape, n * k),
               operations)  # fmt: skip
    if device == "cuda" and k % 64 == 0 and n % 64 == 0:
        for dtype, name, size in ((torch.int8, "2:4 int8", 1), (torch.float16, "2:4 f16", 2)):
            make = _semi_structured(shape, device, dtype)
            yield Case("2:4", name, shape, f"cuSPARSELt {name}", make, size * n * k // 2, 0, operations, sparsity=0.5)

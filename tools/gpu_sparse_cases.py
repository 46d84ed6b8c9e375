"""Sparse and low-rank products for gpu_bench: operands, calls and the distance from the exact result."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gpu_cases import Call, Case, Shape
from numpy.typing import NDArray
from torch import Tensor

from tersor import kernels

Array = NDArray[Any]
RANKS = [64, 256]
BF16 = 1


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def _dense(n: int, k: int, density: float, form: str) -> Array:
    """int8 [n, k]: 2 of every 4 columns, 16x32 blocks or single values are kept."""
    rng = np.random.default_rng(1)
    w = rng.integers(1, 128, (n, k), dtype=np.int8)
    if form == "sparse24":
        return w * np.tile(np.array([1, 0, 0, 1], np.int8), (n, k // 4))
    if form == "block":
        keep = rng.random((n // 16, k // 32)) < density
        return w * np.kron(keep.astype(np.int8), np.ones((16, 32), np.int8))
    return w * (rng.random((n, k)) < density).astype(np.int8)


@functools.lru_cache(maxsize=2)
def _packed(n: int, k: int, density: float, form: str, dtype: str) -> tuple[dict[str, Tensor], Tensor]:
    """The operands of the launcher `form`_`dtype` on the device, and the weight as float64 on the device."""
    gpu, w = kernels.cuda(), _dense(n, k, density, form)
    source = w if dtype == "s8" else w.astype(np.float16).view(np.uint16) if dtype == "f16" else w.astype(np.float32)
    names = {
        "sparse24": ("values", "metadata"),
        "bitmap": ("bitmap", "values", "offsets"),
        "block": ("values", "row_offsets", "column_indices"),
        "csr": ("values", "row_offsets", "column_indices"),
    }[form]
    arrays = getattr(gpu, f"pack_{form}_{dtype}")(source)
    operands = {
        name: torch.from_numpy(array.reshape(-1).view(np.uint8)).cuda()
        for name, array in zip(names, arrays, strict=True)
    }
    return operands, torch.from_numpy(w).cuda()


def sparse(shape: Shape, form: str, dtype: str, density: float) -> Case:
    """One launcher of the four sparse forms."""
    m, n, k = shape
    gpu = kernels.cuda()
    operands, dense = _packed(n, k, density, form, dtype)
    if dtype == "s8":
        x = torch.randint(0, 256, (m, k), dtype=torch.uint8, device="cuda")
    else:
        x = torch.randn(m, k, device="cuda").to(torch.float16 if dtype == "f16" else torch.bfloat16)
    y = torch.empty(m, n, dtype=torch.bfloat16, device="cuda")
    check = torch.empty(m, n, dtype=torch.int32 if dtype == "s8" else torch.float32, device="cuda")
    ones, zeros = torch.ones(max(m, n), device="cuda"), torch.zeros(max(m, n), dtype=torch.int32, device="cuda")

    def call(tensors: dict[str, Tensor], checking: bool) -> Call:
        launcher, integer = getattr(gpu, f"{form}_{dtype}"), dtype == "s8"
        target = check if checking else y
        scales: dict[str, int] = {"row_scale": ones.data_ptr(), "row_zero": zeros.data_ptr()} if integer else {}
        epilogue = gpu.Epilogue(
            y=target.data_ptr(), ldy=n, dtype=BF16 if not checking else 0, col_scale=ones.data_ptr(),
            col_sum=zeros.data_ptr(), sums=target.data_ptr() if checking and integer else 0, **scales,
        )  # fmt: skip
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}

        def run(keep: dict[str, Tensor] = tensors) -> None:
            launcher(m=m, n=n, k=k, a=x.data_ptr(), lda=k, epilogue=epilogue, stream=_stream(), **addresses)

        return run

    def make() -> Call:
        return call({name: tensor.clone() for name, tensor in operands.items()}, False)

    def error() -> float | None:
        if dtype == "f32":
            return None  # x is bfloat16 and y float32: tests/python/test_cuda_sparse.py checks the numbers
        call(operands, True)()
        rows = min(m, 64)
        exact = x[:rows].double() @ dense.double().t()
        got = check[:rows].double()
        return float((got - exact).abs().max()) if dtype == "s8" else float((got - exact).norm() / exact.norm())

    size = sum(tensor.numel() for tensor in operands.values())
    kept = float((dense != 0).sum()) / dense.numel()
    element = {"s8": 1, "f16": 2, "f32": 2}[dtype]
    operations = int(2 * m * n * k * (kept if form != "bitmap" else 1))
    return Case(
        f"{form}_{dtype}", dtype, shape, f"{form}_{dtype}", make, size, size + m * k * element + 2 * m * n, operations,
        error, dtype == "s8", round(1 - kept, 3),
    )  # fmt: skip


def low_rank(shape: Shape, dtype: str, rank: int) -> Case:
    """x down^T up^T with the intermediate on the chip."""
    m, n, k = shape
    gpu = kernels.cuda()
    if dtype == "s8":
        x = torch.randint(0, 256, (m, k), dtype=torch.uint8, device="cuda")
        down, up = (torch.randint(-127, 128, s, dtype=torch.int8, device="cuda") for s in ((rank, k), (n, rank)))
    else:
        x = torch.randn(m, k, device="cuda").half()
        down, up = (torch.randn(s, device="cuda").half() / 16 for s in ((rank, k), (n, rank)))
    y = torch.empty(m, n, dtype=torch.bfloat16, device="cuda")
    ones = torch.full((max(m, n, rank),), 1e-3, device="cuda")
    zeros = torch.zeros(max(m, n, rank), dtype=torch.int32, device="cuda")

    def make() -> Call:
        weights = [down.clone(), up.clone()]
        scales: dict[str, int] = {}
        if dtype == "s8":
            scales = {"down_scale": ones.data_ptr(), "down_sum": zeros.data_ptr()}
        epilogue = gpu.Epilogue(
            y=y.data_ptr(), ldy=n, dtype=BF16, row_scale=ones.data_ptr() if dtype == "s8" else 0,
            row_zero=zeros.data_ptr() if dtype == "s8" else 0, col_scale=ones.data_ptr(), col_sum=zeros.data_ptr(),
        )  # fmt: skip

        def run(keep: list[Tensor] = weights) -> None:
            getattr(gpu, f"lowrank_{dtype}")(
                m=m, n=n, k=k, rank=rank, x=x.data_ptr(), ldx=k, down=keep[0].data_ptr(), up=keep[1].data_ptr(),
                epilogue=epilogue, stream=_stream(), **scales,
            )  # fmt: skip

        return run

    element = down.element_size()
    size = rank * (n + k) * element
    return Case(
        f"lowrank_{dtype}", dtype, shape, f"lowrank_{dtype}", make, size, size + m * k * element + 2 * m * n,
        2 * m * rank * (n + k), lambda: None, dtype == "s8", 0.0, rank,
    )  # fmt: skip


def two_products(shape: Shape, rank: int) -> Case:
    """The rival of low_rank: two products of torch in float16."""
    m, n, k = shape
    x = torch.randn(m, k, device="cuda").half()
    down, up = torch.randn(rank, k, device="cuda").half(), torch.randn(n, rank, device="cuda").half()

    def make() -> Call:
        first, second = down.clone(), up.clone()
        return lambda: torch.nn.functional.linear(torch.nn.functional.linear(x, first), second)

    size = 2 * rank * (n + k)
    return Case("linear twice", "float16", shape, f"torch f16 twice, rank {rank}", make, size, size, 0, rank=rank)


def cases(shape: Shape) -> Iterator[Case]:
    """Every sparse and low-rank case of one shape."""
    forms: list[tuple[str, str, float]] = [("sparse24", "s8", 0.5), ("sparse24", "f16", 0.5), ("bitmap", "s8", 0.5)]
    forms += [("bitmap", "s8", 0.2), ("block", "s8", 0.5), ("block", "s8", 0.1), ("csr", "s8", 0.05)]
    forms += [("csr", "s8", 0.01), ("csr", "f32", 0.01)]
    for form, dtype, density in forms:
        yield sparse(shape, form, dtype, density)
    for rank in RANKS:
        yield low_rank(shape, "f16", rank)
        yield low_rank(shape, "s8", rank)


def rivals(shape: Shape) -> Iterator[Case]:
    """What else takes these weights."""
    for rank in RANKS:
        yield two_products(shape, rank)

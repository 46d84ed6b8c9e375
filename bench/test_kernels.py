"""The kernels under pytest-benchmark, on every instruction set of this host: pytest bench --benchmark-only"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from tersor import kernels

SHAPES = [
    tuple(map(int, line.split()))
    for line in (Path(__file__).parent / "shapes" / "linear.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    kernels.set_threads(1)


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_linear_s8(benchmark: BenchmarkFixture, shape: tuple[int, int, int], isa: str) -> None:
    m, n, k = shape
    if isa == "scalar" and m * n * k > 1 << 24:
        pytest.skip("scalar takes seconds a call here")
    rng = np.random.default_rng(0)
    x, bias = rng.standard_normal((m, k), dtype=np.float32), rng.standard_normal(n, dtype=np.float32)
    with kernels.use(isa):
        packed = kernels.pack_s8(rng.integers(-127, 128, (n, k), dtype=np.int8), np.full(n, 0.01, np.float32))
        benchmark(kernels.linear_s8, x, packed, bias)
        benchmark.extra_info["kernel"] = str(kernels.inspect_s8(packed)["kernel"])
        if benchmark.stats is not None:  # not under --benchmark-disable
            gops = 2e-9 * m * n * k / benchmark.stats.stats.median
            benchmark.extra_info["gops"] = gops
            benchmark.extra_info["percent_of_ceiling"] = 100 * gops / kernels.int8_ceiling(0.05)


@pytest.mark.parametrize("isa", kernels.available())
def test_quantize_rows(benchmark: BenchmarkFixture, isa: str) -> None:
    x = np.random.default_rng(0).standard_normal((128, 768), dtype=np.float32)
    with kernels.use(isa):
        benchmark(kernels.quantize_rows, x)

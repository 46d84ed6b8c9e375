"""torch.ops.tersor.linear_s8 and spmm_s8 on the CPU: instruction sets, errors, threads, processes.

What holds on every device is in test_torch_op_results.py.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_weight import DTYPES, NONE, OPS, PackedWeight, check
from torch import Tensor

from tersor import _C, kernels
from tersor.ops import ACTIVATIONS

N, K = 45, 70


@pytest.fixture(params=OPS)
def weight(rng: np.random.Generator, request: pytest.FixtureRequest) -> PackedWeight:
    torch.manual_seed(3)
    return PackedWeight(rng, N, K, request.param)


def test_the_codes_are_those_of_the_library() -> None:
    assert _C.activations() == ACTIVATIONS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(K,), (1, K), (3, K), (2, 3, K), (1, 2, 1, 29, K), (1,) * 11 + (2, K)])
def test_every_rank_and_dtype(isa: str, rng: np.random.Generator, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight = PackedWeight(rng, N, K)
    x = torch.randn(shape).to(dtype)
    check(weight(x), weight.expected(x))


def test_a_misaligned_tensor_is_copied(weight: PackedWeight) -> None:
    x = torch.randn(2, K)
    misaligned = torch.frombuffer(bytearray(b"\0" + x.numpy().tobytes()), dtype=torch.float32, offset=1).view(2, K)
    check(weight(misaligned), weight.expected(x))


def test_a_packed_weight_may_start_at_any_multiple_of_8(weight: PackedWeight) -> None:
    x = torch.randn(3, K)
    store = torch.empty(weight.packed.numel() + 8, dtype=torch.uint8)
    check(weight.op(x, store[8:].copy_(weight.packed), NONE, NONE, N, 0, 0.0, 0), weight.expected(x))
    with pytest.raises(RuntimeError, match="its address is not a multiple of 8"):
        weight.op(x, store[1:-7].copy_(weight.packed), NONE, NONE, N, 0, 0.0, 0)


X = torch.randn(2, K)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.double()}, "x: expected float32, bfloat16 or float16, got float64"),
        ({"x": X.to(torch.int8)}, "x: expected float32, bfloat16 or float16, got int8"),
        ({"x": X.to(torch.complex64)}, "x: expected float32, bfloat16 or float16, got dtype"),
        ({"x": X[:, 1:]}, rf"x: expected shape \[..., {K}\] .*, got \[2, {K - 1}\]"),
        ({"x": torch.tensor(1.0)}, rf"x: expected shape \[..., {K}\] .*, got \[\]"),
        ({"x": X.to_sparse()}, "x: expected a dense tensor on cpu, got a sparse tensor on cpu"),
        ({"out_features": N + 1}, f"out_features: the packed weight has {N}, got {N + 1}"),
        ({"out_features": -1}, f"out_features: the packed weight has {N}, got -1"),
        ({"bias": torch.randn(N - 1)}, rf"bias: expected shape \[{N}\], got \[{N - 1}\]"),
        ({"bias": torch.randn(1, N)}, rf"bias: expected shape \[{N}\], got \[1, {N}\]"),
        ({"bias": torch.randn(N).double()}, "bias: expected float32 or the dtype of x, got float64"),
        ({"bias": torch.randn(N).half()}, "bias: expected float32 or the dtype of x, got float16"),
        ({"residual": torch.randn(2, K)}, rf"residual: expected the shape of the output, \[2, {N}\], got \[2, {K}\]"),
        ({"residual": torch.randn(N)}, rf"residual: expected the shape of the output, \[2, {N}\], got \[{N}\]"),
        ({"residual": torch.randn(2, N).half()}, "residual: expected float32, got float16"),
        ({"activation": 5}, "unknown activation code 5; codes are 0 to 4"),
        ({"activation": 1 << 40}, "activation=1099511627776 is out of range"),
        ({"x_scale": -0.5}, "x_scale=-0.5"),
        ({"x_scale": float("nan")}, "x_scale="),
        ({"x_zero_point": 256}, r"x_zero_point=256 is outside \[0, 255\]"),
        ({"packed": lambda p: p[:-1]}, "packed (sparse )?int8 weight: header says"),
        ({"packed": lambda p: p[:0]}, "0 bytes are too few"),
        ({"packed": lambda p: torch.zeros_like(p)}, "pack the weight again"),
        ({"packed": lambda p: p.to(torch.int8)}, "packed: expected uint8, got int8"),
        ({"packed": lambda p: p.view(1, -1)}, "packed: expected a contiguous 1-d tensor, got shape"),
        (
            {"packed": lambda p: p.repeat_interleave(2)[::2]},
            "packed: expected a contiguous 1-d .* with stride 2",
        ),
    ],
)
def test_wrong_arguments_say_what_was_expected_and_what_was_got(
    weight: PackedWeight, change: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {
        "x": X, "packed": weight.packed, "bias": NONE, "residual": NONE, "out_features": N, "activation": 0,
        "x_scale": 0.0, "x_zero_point": 0,
    }  # fmt: skip
    if callable(change.get("packed")):
        change = {"packed": change["packed"](weight.packed)}
    with pytest.raises(RuntimeError, match=message):
        weight.op(**{**arguments, **change})


def test_a_failing_call_leaks_nothing(weight: PackedWeight) -> None:
    def fail(times: int) -> int:
        for _ in range(times):
            with pytest.raises(RuntimeError):
                weight(torch.empty(64, K + 1))  # 18 KiB that is lost when a handle is not given back
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

    before = fail(200)
    assert fail(4000) - before < 16 << 10  # in KiB; 70 MiB would be lost


def cpu_ticks_by_thread() -> dict[str, int]:
    ticks = {}
    for stat in Path("/proc/self/task").glob("*/stat"):
        fields = stat.read_text().rpartition(")")[2].split()
        ticks[stat.parent.name] = int(fields[11]) + int(fields[12])
    return ticks


def busy_threads(call: Callable[[], Any]) -> int:
    """How many threads do at least a tenth of the work of `call`, repeated for half a second of CPU time."""
    call()
    for _ in range(50):  # NumPy's BLAS workers spin for a while after the reference was computed
        before = cpu_ticks_by_thread()
        time.sleep(0.1)
        if cpu_ticks_by_thread() == before:
            break
    before, start = cpu_ticks_by_thread(), time.process_time()
    while time.process_time() - start < 0.5:
        call()
    spent = [ticks - before.get(thread, 0) for thread, ticks in cpu_ticks_by_thread().items()]
    return sum(ticks > sum(spent) / 10 for ticks in spent)


def check_thread_counts() -> None:
    rng = np.random.default_rng(0)
    weight = PackedWeight(rng, 1024, 1024)
    x = torch.randn(128, 1024)
    expected = weight.expected(x)
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        check(weight(x), expected)
        assert busy_threads(lambda: weight(x)) <= min(threads, kernels.usable_cpus())
    torch.set_num_threads(2)
    assert busy_threads(lambda: weight(x)) == min(2, kernels.usable_cpus())


def test_set_num_threads_is_obeyed() -> None:
    """In a process of its own: threads that other tests left behind would be counted."""
    process = torch.multiprocessing.get_context("spawn").Process(target=check_thread_counts)
    process.start()
    process.join(120)
    assert process.exitcode == 0


def test_many_python_threads_at_once(rng: np.random.Generator) -> None:
    weight = PackedWeight(rng, 300, 400)
    inputs = [torch.randn(m, 400) for m in (1, 3, 40, 90)]
    expected = [weight.expected(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for i, got in enumerate(pool.map(lambda i: weight(inputs[i % 4]), range(200))):
            check(got, expected[i % 4])


def test_inside_a_parallel_region_of_torch(rng: np.random.Generator) -> None:
    """The op runs on the threads of an enclosing at::parallel_for, which torch's C shim opens for us."""
    weight = PackedWeight(rng, 300, 400)
    inputs = [torch.randn(90, 400) for _ in range(8)]
    results: list[Tensor | None] = [None] * len(inputs)
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)

    @callback
    def run_range(begin: int, end: int, _: Any) -> None:
        for i in range(begin, end):
            results[i] = weight(inputs[i])

    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    zero, count, one = ctypes.c_int64(0), ctypes.c_int64(len(inputs)), ctypes.c_int64(1)
    assert library.torch_parallel_for(zero, count, one, run_range, None) == 0
    for x, got in zip(inputs, results, strict=True):
        assert got is not None
        check(got, weight.expected(x))


@pytest.mark.parametrize("first_use", ["torch op", "numpy kernels", "both"])
def test_fork_after_use(rng: np.random.Generator, first_use: str) -> None:
    """A child forked after use computes on (kernels with the own pool; the torch op on one thread)."""
    weight = PackedWeight(rng, 512, 512)
    x = torch.randn(64, 512)
    expected = weight.expected(x)
    if first_use != "numpy kernels":
        weight(x)
    if first_use != "torch op":
        kernels.linear_s8(x.numpy(), weight.packed.numpy())
    child = os.fork()
    if child == 0:
        status = 1
        try:
            same = np.array_equal(kernels.linear_s8(x.numpy(), weight.packed.numpy()), expected.numpy())
            torch.set_num_threads(1)  # libgomp's threads are not there after a fork
            status = 0 if same and torch.equal(weight(x), expected) else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(done[1]) == 0
    check(weight(x), expected)


def test_grad_mode_and_inference_mode_give_the_same(weight: PackedWeight) -> None:
    x = torch.randn(3, K, requires_grad=True)
    expected = weight.expected(x.detach())
    check(weight(x).detach(), expected)
    with torch.inference_mode():
        check(weight(x), expected)

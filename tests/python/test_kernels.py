"""tersor.kernels against numpy_reference: every instruction set, awkward shapes, wrong arguments."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy_reference as reference
import pytest

from tersor import kernels
from tersor.errors import TersorError

# Around tile, row and panel borders of every kernel; k not a multiple of 4, 32 or 64.
SHAPES = [(1, 1, 1), (1, 31, 3), (2, 32, 64), (3, 33, 65), (5, 64, 31), (13, 96, 127), (14, 1, 256), (15, 130, 67),
          (29, 48, 100), (64, 257, 33)]  # fmt: skip
ACTIVATIONS = ["none", "relu", "gelu", "gelu_tanh", "silu"]


def rows(rng: np.random.Generator, m: int, k: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (rng.standard_normal((m, k)) * rng.uniform(0.01, 30, size=(m, 1))).astype(np.float32)


def test_use_runs_the_instruction_set_that_it_names(isa: str, rng: np.random.Generator) -> None:
    assert kernels.active() == isa
    kernel = kernels.inspect_s8(kernels.pack_s8(*reference.weight(rng, 40, 24)))["kernel"]
    owner = re.fullmatch(r"gemm_s8_\d+x\d+_(\w+)", kernel)
    assert owner is not None
    # A set without a kernel of its own borrows the next one down.
    assert kernels.built().index(owner[1]) <= kernels.built().index(isa)


def test_use_restores_and_refuses_unknown_names() -> None:
    before = kernels.active()
    with contextlib.suppress(ZeroDivisionError), kernels.use("scalar"):
        assert kernels.active() == "scalar"
        raise ZeroDivisionError
    assert kernels.active() == before
    with pytest.raises(TersorError, match=r"avx9000 is not an instruction set.*scalar"), kernels.use("avx9000"):
        pass
    assert set(kernels.available()) <= set(kernels.built())
    assert kernels.available()[0] == "scalar"


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_gemm_is_exact(isa: str, rng: np.random.Generator, m: int, n: int, k: int) -> None:
    w, scale = reference.weight(rng, n, k)
    a = rng.integers(0, 256, size=(m, k), dtype=np.uint8)
    packed = kernels.pack_s8(w, scale)
    assert packed.size == kernels.packed_bytes_s8(n, k)
    np.testing.assert_array_equal(kernels.gemm_s8(a, packed), reference.gemm(a, w))


def test_gemm_at_the_extremes_does_not_saturate(isa: str) -> None:
    k = 65536
    w = np.repeat(np.array([[127], [-127], [1]], dtype=np.int8), k, axis=1)
    a = np.full((2, k), 255, dtype=np.uint8)
    np.testing.assert_array_equal(
        kernels.gemm_s8(a, kernels.pack_s8(w, np.ones(3, np.float32))), [[255 * 127 * k, -255 * 127 * k, 255 * k]] * 2
    )


@pytest.mark.parametrize(("n", "k"), [(1, 1), (63, 5), (64, 64), (65, 130), (200, 31)])
def test_unpack_inverts_pack(isa: str, rng: np.random.Generator, n: int, k: int) -> None:
    w, scale = reference.weight(rng, n, k)
    packed = kernels.pack_s8(w, scale)
    got_w, got_scale = kernels.unpack_s8(packed)
    np.testing.assert_array_equal(got_w, w)
    np.testing.assert_array_equal(got_scale, scale)
    info = kernels.inspect_s8(packed)
    assert (info["n"], info["k"], info["runnable"]) == (n, k, True)


@pytest.mark.parametrize(("m", "k"), [(1, 1), (2, 15), (3, 16), (4, 17), (5, 64), (7, 1000)])
def test_quantize_rows_is_the_definition(isa: str, rng: np.random.Generator, m: int, k: int) -> None:
    x = rows(rng, m, k)
    x[0] = np.abs(x[0]) * (1 if k % 2 else -1)  # one-sided rows: 0 must still be in the range
    expected_q, expected_scale, expected_zero = reference.quantize_rows(x)
    q, scale, zero_point, row_sum = kernels.quantize_rows(x)
    np.testing.assert_array_equal(q, expected_q)
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_array_equal(zero_point, expected_zero)
    np.testing.assert_array_equal(row_sum, q.sum(axis=1, dtype=np.int32))


def test_quantize_rows_of_special_values(isa: str) -> None:
    tiny = np.finfo(np.float32).smallest_subnormal
    x = np.zeros((6, 70), dtype=np.float32)
    x[1, 69], x[2, 3], x[3, 68], x[4, 5], x[5] = np.nan, np.inf, -np.inf, tiny, np.finfo(np.float32).max
    expected_q, expected_scale, expected_zero = reference.quantize_rows(x)
    q, scale, zero_point, _ = kernels.quantize_rows(x)
    np.testing.assert_array_equal(q, expected_q)
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_array_equal(zero_point, expected_zero)
    assert np.isnan(scale[1:4]).all()
    assert np.isfinite(scale[[0, 4, 5]]).all()


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("extras", ["plain", "bias", "residual", "both", "static"])
def test_linear_is_the_definition(isa: str, rng: np.random.Generator, m: int, n: int, k: int, extras: str) -> None:
    w, scale = reference.weight(rng, n, k)
    x = rows(rng, m, k)
    bias = rng.standard_normal(n).astype(np.float32) if extras in ("bias", "both") else None
    residual = rng.standard_normal((m, n)).astype(np.float32) if extras in ("residual", "both") else None
    static = (0.03, 119) if extras == "static" else (0.0, 0)
    got = kernels.linear_s8(x, kernels.pack_s8(w, scale), bias, residual, "none", *static)
    np.testing.assert_array_equal(got, reference.linear(x, w, scale, bias, residual, *static))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_linear_applies_the_activation_to_its_own_result(isa: str, rng: np.random.Generator, name: str) -> None:
    w, scale = reference.weight(rng, 37, 50)
    x = rows(rng, 9, 50)
    got = kernels.linear_s8(x, kernels.pack_s8(w, scale), activation=name)
    np.testing.assert_array_equal(got, kernels.activate(name, reference.linear(x, w, scale)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_the_function(isa: str, name: str) -> None:
    x = (
        np.concatenate([np.linspace(-12, 12, 4000), [0.0, -0.0, 1e-30, -1e-30]])
        .astype(np.float32)
        .reshape(-1, 7, 1)[:, ::2]
    )
    expected = reference.activation(name, x)
    got = kernels.activate(name, x)
    assert got.shape == x.shape
    # 4 units in the last place (docs/kernels.md), and what float32 cannot resolve below the smallest normal number.
    bound = 4 * np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64) + np.finfo(np.float32).tiny
    assert (np.abs(got - expected) <= bound).all()


def test_a_depth_over_the_exact_limit_is_summed_in_chunks(isa: str, rng: np.random.Generator) -> None:
    k = 65536 + 37
    w, scale = reference.weight(rng, 3, k)
    x, bias = rows(rng, 2, k), rng.standard_normal(3).astype(np.float32)
    residual = rng.standard_normal((2, 3)).astype(np.float32)
    packed = kernels.pack_s8(w, scale)
    got = kernels.linear_s8(x, packed, bias, residual)
    np.testing.assert_array_equal(got, reference.linear(x, w, scale, bias, residual))
    with pytest.raises(TersorError, match="at most 65536"):
        kernels.gemm_s8(np.zeros((1, k), np.uint8), packed)


def test_a_row_with_nan_or_infinity_gives_nan_and_leaves_the_others_alone(isa: str, rng: np.random.Generator) -> None:
    w, scale = reference.weight(rng, 20, 40)
    x = rows(rng, 4, 40)
    clean = kernels.linear_s8(x, kernels.pack_s8(w, scale))
    x[1, 7], x[2, 39] = np.nan, -np.inf
    got = kernels.linear_s8(x, kernels.pack_s8(w, scale))
    assert np.isnan(got[1:3]).all()
    np.testing.assert_array_equal(got[[0, 3]], clean[[0, 3]])


def test_a_packed_weight_outlives_the_set_it_was_packed_for(rng: np.random.Generator) -> None:
    w, scale = reference.weight(rng, 70, 90)
    x = rows(rng, 6, 90)
    expected = reference.linear(x, w, scale)
    for packed_for in kernels.available():
        with kernels.use(packed_for):
            packed = kernels.pack_s8(w, scale)
        for active in kernels.available():
            with kernels.use(active):
                np.testing.assert_array_equal(kernels.linear_s8(x, packed), expected)


def test_strides_and_alignment_do_not_matter(isa: str, rng: np.random.Generator) -> None:
    w, scale = reference.weight(rng, 40, 50)
    x = rows(rng, 6, 50)
    packed = kernels.pack_s8(w, scale)
    expected = reference.linear(x, w, scale)
    wide = np.zeros((12, 100), np.float32)
    wide[::2, ::-2] = x
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    shifted = np.empty(packed.size + 8, np.uint8)[8:]
    shifted[:] = packed
    for same in (wide[::2, ::-2], np.asfortranarray(x), unaligned):
        np.testing.assert_array_equal(kernels.linear_s8(same, packed), expected)
    np.testing.assert_array_equal(kernels.pack_s8(np.asfortranarray(w), np.repeat(scale, 2)[::2]), packed)
    np.testing.assert_array_equal(kernels.linear_s8(x, shifted), expected)


def test_empty_batches(isa: str, rng: np.random.Generator) -> None:
    packed = kernels.pack_s8(*reference.weight(rng, 7, 9))
    assert kernels.linear_s8(np.empty((0, 9), np.float32), packed).shape == (0, 7)
    assert kernels.gemm_s8(np.empty((0, 9), np.uint8), packed).shape == (0, 7)
    assert kernels.quantize_rows(np.empty((0, 9), np.float32))[0].shape == (0, 9)
    assert kernels.activate("gelu", np.empty((0, 3), np.float32)).shape == (0, 3)


X, W, SCALE = np.ones((2, 6), np.float32), np.ones((4, 6), np.int8), np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: kernels.linear_s8(X.astype(np.float64), p), "x: expected a numpy array of float32, got float64"),
        (lambda p: kernels.linear_s8(X.astype(">f4"), p), "x: expected a numpy array of float32, got >f4"),
        (lambda p: kernels.linear_s8(X.tolist(), p), "x: expected a numpy array of float32, got list"),
        (lambda p: kernels.linear_s8(X[0], p), r"x: expected 2 dimensions, got shape \[6\]"),
        (lambda p: kernels.linear_s8(X[:, :5], p), r"x: expected shape \[2, 6\], got \[2, 5\]"),
        (lambda p: kernels.linear_s8(X, p, np.ones(3, np.float32)), r"bias: expected shape \[4\], got \[3\]"),
        (lambda p: kernels.linear_s8(X, p, None, X), r"residual: expected shape \[2, 4\], got \[2, 6\]"),
        (lambda p: kernels.linear_s8(X, p, activation="tanh"), "'tanh' is unknown; there are none, relu, gelu"),
        (lambda p: kernels.linear_s8(X, p, x_scale=-1.0), "x_scale=-1"),
        (lambda p: kernels.linear_s8(X, p, x_scale=float("nan")), "x_scale="),
        (lambda p: kernels.linear_s8(X, p, x_scale=1.0, x_zero_point=256), r"x_zero_point=256 is outside \[0, 255\]"),
        (lambda p: kernels.linear_s8(X, p[:-1]), "header says"),
        (lambda p: kernels.linear_s8(X, p[:9]), "too few"),
        (lambda p: kernels.linear_s8(X, np.append(p[:1], p)[1:]), "address is not a multiple of 8"),
        (lambda p: kernels.linear_s8(X, np.zeros_like(p)), "pack the weight again"),
        (lambda p: kernels.linear_s8(X, p.reshape(1, -1)), "packed: expected 1 dimension"),
        (lambda p: kernels.gemm_s8(np.ones((2, 6), np.int8), p), "a: expected a numpy array of uint8, got int8"),
        (lambda p: kernels.gemm_s8(np.ones((2, 7), np.uint8), p), r"a: expected shape \[2, 6\], got \[2, 7\]"),
        (lambda p: kernels.pack_s8(W * -128, SCALE), "found -128"),
        (lambda p: kernels.pack_s8(W, SCALE * 0), "scale of row 0 is 0"),
        (lambda p: kernels.pack_s8(W, SCALE[:3]), r"scale: expected shape \[4\], got \[3\]"),
        (lambda p: kernels.pack_s8(W[:0], SCALE[:0]), r"n and k must be in \[1, 2\^31\), got n=0"),
        (lambda p: kernels.packed_bytes_s8(2**31, 1), "got n=2147483648"),
        (lambda p: kernels.activate("gelu", X.astype(np.float16)), "x: expected a numpy array of float32, got float16"),
        (lambda p: kernels.set_threads(-1), "threads=-1"),
    ],
)
def test_wrong_arguments_say_what_was_expected_and_what_was_got(call: Any, message: str) -> None:
    with pytest.raises(TersorError, match=message):
        call(kernels.pack_s8(W, SCALE))


def test_raw_addresses_pack_in_blocks_of_rows(rng: np.random.Generator) -> None:
    from tersor import _C

    w, scale = reference.weight(rng, 150, 33)
    block = np.empty(kernels.packed_bytes_s8(150, 33), np.uint8)
    where = (block.ctypes.data, block.size)
    _C.pack_begin_s8(150, 33, *where)
    for begin in range(0, 150, 64):
        part = w[begin : begin + 64].copy()
        _C.pack_rows_s8(begin, len(part), part.ctypes.data, scale[begin:].ctypes.data, *where)
    np.testing.assert_array_equal(block, kernels.pack_s8(w, scale))
    out, out_scale = np.empty((22, 33), np.int8), np.empty(22, np.float32)
    _C.unpack_rows_s8(128, 22, *where, out.ctypes.data, out_scale.ctypes.data)
    np.testing.assert_array_equal(out, w[128:])
    np.testing.assert_array_equal(out_scale, scale[128:])
    with pytest.raises(TersorError, match="multiples of 64"):
        _C.pack_rows_s8(1, 64, w.ctypes.data, scale.ctypes.data, *where)
    with pytest.raises(TersorError, match="null address"):
        _C.pack_rows_s8(0, 64, 0, scale.ctypes.data, *where)


def test_threads_are_set_and_capped_and_change_no_bit(rng: np.random.Generator) -> None:
    w, scale = reference.weight(rng, 700, 500)
    packed, x = kernels.pack_s8(w, scale), rows(rng, 60, 500)
    try:
        kernels.set_threads(1)
        assert kernels.threads() == 1
        serial = kernels.linear_s8(x, packed)
        kernels.set_threads(10_000)
        assert kernels.threads() == kernels.usable_cpus()
        np.testing.assert_array_equal(kernels.linear_s8(x, packed), serial)
    finally:
        kernels.set_threads(0)
    np.testing.assert_array_equal(serial, reference.linear(x, w, scale))


def test_many_python_threads_at_once(rng: np.random.Generator) -> None:
    w, scale = reference.weight(rng, 300, 400)
    packed = kernels.pack_s8(w, scale)
    inputs = [rows(rng, m, 400) for m in (1, 3, 40, 90)]
    expected = [reference.linear(x, w, scale) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for i, got in enumerate(pool.map(lambda i: kernels.linear_s8(inputs[i % 4], packed), range(200))):
            np.testing.assert_array_equal(got, expected[i % 4])


def test_importing_the_kernels_imports_no_torch() -> None:
    code = "import sys, tersor; tersor.kernels.available(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_misspelt_environment_variable_is_an_error() -> None:
    code = "from tersor import kernels; kernels.active()"
    run = subprocess.run(
        [sys.executable, "-c", code], env={"TERSOR_ISA": "avx51"}, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert "TersorError: TERSOR_ISA=avx51 is not an instruction set" in run.stderr

"""Code book weights: kernels against NumPy's definition, every code book in a layer, files, the op under compilers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy_reference as reference
import pytest
import torch
from torch import nn

import tersor
from tersor import kernels
from tersor.errors import TersorError
from tersor.nn import CodebookLinear
from tersor.nn.codebook_packed import code_bytes, pack_bits, unpack_bits
from tersor.ops import ACTIVATIONS, LINEAR_LUT4
from tersor.quantize.codebooks import CODEBOOKS, decode, make_codebook

NONE = torch.empty(0)
F32 = np.float32


def random_codes(rng: np.random.Generator, n: int, k: int, bits: int, group: int, dims: int) -> tuple[Any, Any, Any]:
    groups = -(-k // group) if group else 1
    table = rng.integers(-127, 128, [(2**bits,), (n, 2**bits), (n, groups, 2**bits)][dims - 1], dtype=np.int8)
    codes = rng.integers(0, 2**bits, (n, k), dtype=np.uint8)
    return codes, table, rng.uniform(1e-3, 2e-2, (n, groups)).astype(F32)


def looked_up(codes: Any, table: Any, group: int) -> Any:
    if table.ndim == 1:
        return table[codes]
    rows, part = np.arange(len(codes))[:, None], np.arange(codes.shape[1]) // (group or codes.shape[1])
    return table[rows, codes] if table.ndim == 2 else table[rows, part, codes]


def by_definition(x: Any, w: Any, scale: Any, group: int, bias: Any, residual: Any) -> Any:
    """The parts of k in their order, each float step rounded once."""
    q, row_scale, zero = reference.quantize_rows(x)
    y, size = residual, group or x.shape[1]
    for part in range(scale.shape[1]):
        here = slice(part * size, (part + 1) * size)
        column_sum = w[:, here].astype(np.int32).sum(axis=1, dtype=np.int32)
        exact = reference.gemm(q[:, here], w[:, here]) - zero[:, None] * column_sum
        y = (exact.astype(F32) * (row_scale[:, None] * scale[:, part]) + (bias if part == 0 else F32(0))) + y
    return y


@pytest.mark.parametrize(
    ("bits", "group", "dims"), [(4, 0, 1), (4, 64, 1), (3, 32, 2), (2, 128, 3), (6, 64, 3), (8, 0, 2)]
)
def test_kernels(isa: str, rng: np.random.Generator, bits: int, group: int, dims: int) -> None:
    n, k = 37, 150
    codes, table, scale = random_codes(rng, n, k, bits, group, dims)
    packed, w = kernels.pack_lut4(codes, table, scale, group), looked_up(codes, table, group)
    bias = rng.standard_normal(n).astype(F32)
    for m in (1, 3, 20):
        x, residual = rng.standard_normal((m, k)).astype(F32), rng.standard_normal((m, n)).astype(F32)
        expected = by_definition(x, w, scale, group, bias, residual)
        np.testing.assert_array_equal(kernels.linear_lut4(x, packed, bias, residual), expected)
        a = rng.integers(0, 256, (m, k), dtype=np.uint8)
        np.testing.assert_array_equal(kernels.gemm_lut4(a, packed), reference.gemm(a, w))
    back = kernels.unpack_lut4(packed)
    np.testing.assert_array_equal(looked_up(back[0], back[1], group), w)
    assert all(np.array_equal(one, other) for one, other in zip(back[1:], (table, scale), strict=True))
    info = kernels.inspect_lut4(packed)
    assert (info["n"], info["k"], info["bits"], info["group"]) == (n, k, bits, group)


def test_wrong_arrays_are_refused(rng: np.random.Generator) -> None:
    codes, table, scale = random_codes(rng, 6, 70, 4, 32, 1)
    for arguments, message in [
        ((codes, table[:5], scale, 32), "4, 8, 16"),
        ((codes, table, scale[:, :2], 32), "scale: expected shape"),
        ((codes, table, scale, 33), "multiple of 32"),
        ((codes, np.full(16, -128, np.int8), scale, 32), "-128"),
        ((codes + np.uint8(16), table, scale, 32), "does not fit 4 bits"),
        ((codes, table[None], scale, 32), "table: expected shape"),
        ((codes, table, -scale, 32), "greater than 0"),
    ]:
        with pytest.raises(TersorError, match=message):
            kernels.pack_lut4(*arguments)


@pytest.mark.parametrize("bits", range(2, 9))
def test_bits_in_files(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 13), dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (5, code_bytes(13, bits))
    assert torch.equal(unpack_bits(packed, 13, bits), codes)
    if 13 * bits % 8:
        packed[0, -1] |= 128
        with pytest.raises(ValueError, match="are not 0"):
            unpack_bits(packed, 13, bits)


@pytest.mark.parametrize("group_size", [None, 32])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("codebook", sorted(CODEBOOKS))
def test_every_code_book(codebook: str, bits: int, group_size: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = nn.Linear(70, 33), torch.randn(5, 70)
    codes = make_codebook(codebook).fit(module.weight.detach(), bits, group_size)
    layer = CodebookLinear.from_float(module, codebook=codebook, bits=bits, group_size=group_size)
    assert torch.equal(layer.weight + 0, decode(codes))
    with torch.no_grad():
        assert torch.equal(layer(x), CodebookLinear.from_codes(module, codes)(x))
        exact = torch.nn.functional.linear(x, decode(codes), module.bias)
        step = (x.amax(1).clamp_min(0) - x.amin(1).clamp_max(0)) / 255
        assert ((layer(x) - exact).abs() <= step[:, None] / 2 * decode(codes).abs().sum(1) + 1e-5).all()
    other = CodebookLinear.from_config(layer.config())
    other.load_state_dict(layer.state_dict())
    tersor.save(nn.Sequential(layer), tmp_path / "layer.tersor")
    loaded = tersor.load(tmp_path / "layer.tersor", model=nn.Sequential(nn.Linear(70, 33)))
    with torch.no_grad():
        assert torch.equal(other(x), layer(x))
        assert torch.equal(loaded(x), layer(x))


def test_codes_are_checked() -> None:
    module = nn.Linear(70, 33)
    codes = make_codebook("linear").fit(torch.randn(33, 64), 4)
    with pytest.raises(ValueError, match="shape of the weight"):
        CodebookLinear.from_codes(module, codes)
    odd = make_codebook("linear").fit(torch.randn(33, 70), 4, 20)
    with pytest.raises(ValueError, match="multiple of 32"):
        CodebookLinear.from_codes(module, odd)
    layer = CodebookLinear.from_codes(module, make_codebook("nf4").fit(module.weight.detach(), 4))
    with pytest.raises(RuntimeError, match="which code book"):
        layer.load_state_dict(module.state_dict())


def test_op_under_compilers(rng: np.random.Generator) -> None:
    codes, table, scale = random_codes(rng, 45, 70, 4, 32, 2)
    packed, x = torch.from_numpy(kernels.pack_lut4(codes, table, scale, 32)), torch.randn(4, 3, 70)
    residual = torch.randn(4, 3, 45)
    torch.library.opcheck(LINEAR_LUT4, (x, packed, torch.randn(45), residual, 45, 1, 0.0, 0))
    torch.library.opcheck(LINEAR_LUT4, (x.half().transpose(0, 1), packed, NONE, NONE, 45, 0, 0.01, 3))

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = LINEAR_LUT4(x * 2, packed, NONE, NONE, 45, ACTIVATIONS["relu"], 0.0, 0)
            return y + 1

    assert torch.equal(torch.compile(Model(), fullgraph=True)(x), Model()(x))
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Model(), (x,), dynamic_shapes=({0: batch},))
    assert torch.equal(program.module()(x[:2]), Model()(x[:2]))
    with pytest.raises(RuntimeError, match="linear_lut4: out_features: the packed weight has 45"):
        LINEAR_LUT4(x, packed, NONE, NONE, 44, 0, 0.0, 0)
    with pytest.raises(RuntimeError, match="packed code book weight"):
        LINEAR_LUT4(x, packed[:-1], NONE, NONE, 45, 0, 0.0, 0)

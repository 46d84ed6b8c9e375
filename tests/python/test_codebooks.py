"""Every code book of the registry: its rules, awkward shapes, and definitions computed another way."""

from __future__ import annotations

import math

import pytest
import torch

from tersor.quantize.codebooks import CODEBOOKS, CodeBook, Codes, KMeans, decode, make_codebook, register_codebook
from tersor.quantize.codebooks.codes import nearest
from tersor.quantize.codebooks.nf4 import normal_quantiles

NAMES = sorted(CODEBOOKS)


def heavy_weight(out: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, columns, generator=generator) * (1 + torch.rand(out, 1, generator=generator) * 9)


def relative_error(codes: Codes, weight: torch.Tensor) -> float:
    return float((decode(codes) - weight).norm() / weight.norm())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 65), (3, 64), (5, 100), (2, 1), (64, 33), (0, 8), (4, 0)])
@pytest.mark.parametrize("group_size", [None, 1, 32, 64, 1000])
def test_codes_keep_the_rules_on_awkward_shapes(name: str, shape: tuple[int, int], group_size: int | None) -> None:
    weight = heavy_weight(*shape)
    for bits in (2, 4, 7):
        codes = make_codebook(name).fit(weight, bits, group_size)
        codes.check()
        assert codes.codes.shape == weight.shape
        assert decode(codes).dtype == torch.float32
        assert bool(torch.isfinite(decode(codes)).all())


@pytest.mark.parametrize("name", NAMES)
def test_decode_is_the_formula(name: str) -> None:
    codes = make_codebook(name).fit(heavy_weight(6, 70), 3, 32)
    decoded = decode(codes)
    for o in range(6):
        for i in range(70):
            table = codes.table
            row = table if table.dim() == 1 else table[o] if table.dim() == 2 else table[o, i // 32]
            assert decoded[o, i] == float(row[int(codes.codes[o, i])]) * codes.scale[o, i // 32]


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_gets_the_nearest_entry(name: str) -> None:
    weight = heavy_weight(8, 96)
    codes = make_codebook(name).fit(weight, 4, 32)
    table = codes.table.expand(8, 3, 16) if codes.table.dim() < 2 else codes.table.reshape(8, -1, 16).expand(8, 3, 16)
    entries = table.float() * codes.scale[..., None]  # [out, groups, entries]
    distance = (weight.reshape(8, 3, 32, 1) - entries[:, :, None, :]).abs().amin(3).reshape(8, 96)
    assert torch.allclose((decode(codes) - weight).abs(), distance, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_more_bits_and_groups_do_not_hurt(name: str) -> None:
    weight = heavy_weight(32, 256)
    book = make_codebook(name)
    errors = [relative_error(book.fit(weight, bits), weight) for bits in (2, 3, 4)]
    assert errors[0] > errors[1] > errors[2]
    assert relative_error(book.fit(weight, 4, 32), weight) < errors[2]


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zero_and_rows_of_zeros_are_fine(name: str) -> None:
    weight = heavy_weight(4, 64)
    weight[:, ::2] = 0
    weight[1] = 0
    decoded = decode(make_codebook(name).fit(weight, 4, 32))
    assert bool((decoded[weight == 0] == 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_importance_moves_the_error_away_from_what_counts(name: str) -> None:
    weight = heavy_weight(16, 128)
    importance = torch.ones(128)
    importance[:8] = 1000
    weighted, plain = (make_codebook(name).fit(weight, 3, None, counts) for counts in (importance, None))
    errors = [((decode(codes) - weight).square() * importance).sum() for codes in (weighted, plain)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("name", NAMES)
def test_extreme_magnitudes_stay_finite(name: str) -> None:
    for size in (1e-42, 1e-30, 1e37, 3e38):
        codes = make_codebook(name).fit(torch.tensor([[size, -size / 2, 0.0, size / 3]]), 4)
        codes.check()
        assert bool(torch.isfinite(decode(codes)).all())


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_are_refused(name: str) -> None:
    book, weight = make_codebook(name), heavy_weight(2, 8)
    for bits in (1, 9):
        with pytest.raises(ValueError, match="bits"):
            book.fit(weight, bits)
    with pytest.raises(ValueError, match="group_size"):
        book.fit(weight, 4, 0)
    with pytest.raises(ValueError, match="2-d floating-point"):
        book.fit(weight.to(torch.int32), 4)
    with pytest.raises(ValueError, match="NaN or infinity"):
        book.fit(weight * math.inf, 4)
    for bad in (torch.ones(7), -torch.ones(8), torch.full((8,), math.nan)):
        with pytest.raises(ValueError, match="importance"):
            book.fit(weight, 4, None, bad)


@pytest.mark.parametrize("bits", range(2, 9))
def test_tables_are_their_definitions(bits: int) -> None:
    weight = heavy_weight(4, 64)
    linear = make_codebook("linear").fit(weight, bits).table.tolist()
    assert linear == [max(i, -127) for i in range(-(2 ** (bits - 1)), 2 ** (bits - 1))]
    powers = {0, *(s * 2 ** (6 - e) for e in range(min(2 ** (bits - 1) - 1, 7)) for s in (1, -1))}
    assert set(make_codebook("log2").fit(weight, bits).table.tolist()) == powers
    if bits < 8:
        rows = make_codebook("affine").fit(weight, bits).table.to(torch.int64)
        assert bool((rows.diff(dim=1) == 1).all())
    entries = normal_quantiles(bits)
    assert len(entries) == 2**bits
    assert int((entries > 0).sum()) == 2 ** (bits - 1)


def test_nf4_is_the_published_table() -> None:
    published = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    published += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
    assert torch.allclose(normal_quantiles(4).float(), torch.tensor(published), atol=2e-6)


def test_exponential_finds_the_base_that_made_the_weight() -> None:
    for base in (2.0, 1.5):
        signs = torch.randint(0, 2, (8, 64), generator=torch.Generator().manual_seed(1)) * 2 - 1
        weight = signs * base ** -(torch.arange(512).reshape(8, 64) % 7).float()
        exponential = relative_error(make_codebook("exponential").fit(weight, 4), weight)
        log2 = relative_error(make_codebook("log2").fit(weight, 4), weight)
        assert exponential < 0.02
        assert log2 < 1e-6 if base == 2 else log2 > 3 * exponential


def test_kmeans_reaches_values_that_are_few() -> None:
    few = torch.tensor([-0.9, -0.2, 0.0, 0.13, 0.5, 0.7, 0.77, 1.0])
    weight = few[torch.randint(0, 8, (4, 512), generator=torch.Generator().manual_seed(2))]
    for per_channel in (False, True):
        codes = KMeans(per_channel).fit(weight, 3)
        assert codes.table.dim() == 1 + per_channel
        # An entry is rounded to 1/127 of the largest, and a bin is 1/2048 wide.
        assert float((decode(codes) - weight).abs().max()) <= 0.5 / 127 + 1 / 2048 + 1e-6


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_nearest_to_consecutive_integers_is_that_of_any_table(bits: int) -> None:
    table = make_codebook("linear").fit(torch.randn(2, 8), bits).table
    halves = torch.arange(-300, 300).float() / 2
    close = [halves.nextafter(halves + direction) for direction in (-1, 1)]
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(bits)) * 2 ** (bits - 1)
    x = torch.cat([halves, *close, noise, torch.tensor([1e-30, -1e-30, 1e30, -1e30])])[None]
    any_table = nearest(x, table[None])  # one for each row, which is searched
    assert torch.equal(nearest(x, table), any_table)


def test_nearest_takes_the_first_of_equal_entries() -> None:
    table = torch.tensor([-2, 0, 0, 3, 3], dtype=torch.int8)
    x = torch.tensor([[-9.0, -1.1, -0.9, 0.0, 1.4, 1.6, 9.0]])
    assert nearest(x, table).tolist() == [[0, 0, 1, 1, 1, 3, 3]]
    assert nearest(x, table[None]).tolist() == [[0, 0, 1, 1, 1, 3, 3]]


def test_check_names_what_is_wrong() -> None:
    good = make_codebook("linear").fit(heavy_weight(2, 8), 4)
    bad = {
        "codes": good.codes + 16,
        "table": good.table.flip(0),
        "scale": -good.scale,
        "bits": 9,
        "group_size": 0,
    }
    for name, value in bad.items():
        fields = {**vars(good), name: value}
        with pytest.raises(ValueError, match=name):
            Codes(**fields).check()


def test_unknown_and_taken_names_are_errors() -> None:
    with pytest.raises(ValueError, match="known: affine, exponential"):
        make_codebook("fp4")
    with pytest.raises(ValueError, match="belongs to"):
        register_codebook(type("Mine", (CodeBook,), {"name": "linear"}))
    with pytest.raises(ValueError, match="no name"):
        register_codebook(type("Mine", (CodeBook,), {}))

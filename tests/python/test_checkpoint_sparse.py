"""Sparse layers in files: round trips, sizes, and files that attack the loader."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile import Parts
from torch import nn

import tersor
from tersor.nn import SparseInt8Linear, SparseLinear
from tersor.prune import Pruner

CLASSES = [SparseLinear, SparseInt8Linear]
PATTERNS = ["unstructured", "1x4", "4x1", "3x5", "16x1", "2:4", "5:7"]


def pruned(n: int, k: int, pattern: str, sparsity: float | None = 0.8, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(k, n)
    Pruner(layer, pattern=pattern, sparsity=None if ":" in pattern else sparsity)
    return layer.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 6), (33, 70), (64, 128)])
def test_round_trip(tmp_path: Path, cls: type, pattern: str, shape: tuple[int, int]) -> None:
    layer = cls.from_float(pruned(*shape, pattern), pattern=pattern)
    model, x = nn.Sequential(layer), torch.randn(3, shape[1])
    tersor.save(model, tmp_path / "one")
    loaded = tersor.load(tmp_path / "one", nn.Sequential(nn.Linear(shape[1], shape[0])))
    assert type(loaded[0]) is cls
    assert loaded[0].config() == layer.config()
    assert torch.equal(loaded(x), model(x))
    tersor.save(loaded, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_all_and_nothing(tmp_path: Path, cls: type, sparsity: float) -> None:
    layer = cls.from_float(pruned(20, 12, "unstructured", sparsity))
    assert layer.density == 1 - sparsity
    tersor.save(layer, tmp_path / "layer")
    x = torch.randn(5, 12)
    assert torch.equal(tersor.load(tmp_path / "layer")(x), layer(x))


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("pattern", "sparsity"), [("1x4", 0.8), ("unstructured", 0.8), ("16x1", 0.9), ("2:4", 0.5)])
def test_the_file_is_smaller_than_density_times_dense_and_an_index(
    tmp_path: Path, cls: type, dtype: torch.dtype, pattern: str, sparsity: float
) -> None:
    """The index is one bit per block. Blocks that int8 rounds to 0 go, so there may be less."""
    n, k = 512, 384
    source = pruned(n, k, pattern, sparsity, dtype)
    kept = int((source.weight != 0).sum())
    assert abs(kept - (1 - sparsity) * n * k) <= 8
    layer = cls.from_float(source, pattern=pattern)
    tersor.save(layer, tmp_path / "layer")
    info = tersor.inspect(tmp_path / "layer")
    values = next(tensor for tensor in info.layers[0].tensors if tensor.name in ("weight_q", "weight_values"))
    mask = next(tensor for tensor in info.layers[0].tensors if tensor.name == "weight_mask")
    element = 1 if cls is SparseInt8Linear else dtype.itemsize
    assert 0.95 * kept * element < values.nbytes <= kept * element
    assert mask.nbytes == n * k // (8 * layer.grid.area)
    rest = n * (4 + 4)  # scale and bias
    assert info.file_bytes <= values.nbytes + mask.nbytes + rest + info.header_bytes


def test_a_bfloat16_layer_stays_bfloat16(tmp_path: Path) -> None:
    source = pruned(40, 30, "1x4", dtype=torch.bfloat16)
    layer = SparseLinear.from_float(source)
    tersor.save(layer, tmp_path / "layer")
    loaded = tersor.load(tmp_path / "layer")
    assert loaded.canonical_tensors()["weight_values"].dtype == torch.bfloat16
    assert torch.equal(loaded.weight + 0, source.weight)
    rounded = SparseLinear.from_float(pruned(40, 30, "1x4")).bfloat16()  # as nn.Linear rounds its weight
    assert torch.equal(rounded.weight + 0, source.weight)
    assert torch.equal(rounded(torch.ones(2, 30)), layer(torch.ones(2, 30)))


# --- Attacks.


def small(cls: type = SparseInt8Linear, pattern: str = "1x4") -> nn.Module:
    torch.manual_seed(1)
    linear = nn.Linear(10, 5)
    with torch.no_grad():
        linear.weight[:, 4:8] = 0
        if pattern == "2:4":
            linear.weight[:, [0, 1, 8]] = 0
    return nn.Sequential(cls.from_float(linear, pattern=pattern), nn.LayerNorm(5))


def _config(**change: object) -> Callable[[Parts], None]:
    return lambda parts: parts.layer("0")["config"].update(change)


def _values(name: str, index: int, value: int) -> Callable[[Parts], None]:
    return lambda parts: parts.values(name).__setitem__(index, value)


def _flip(index: int, bit: int) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts.values("0.weight_mask")[index] ^= 1 << bit

    return change


def _rescale(parts: Parts) -> None:
    struct.pack_into("<f", parts.values("0.weight_scale"), 4, float("inf"))


def _move_bit(parts: Parts) -> None:
    mask = parts.values("0.weight_mask")
    mask[1] ^= 0x80 | 0x01  # bit 15, beyond the 15 blocks, in place of bit 8


# 5 x 10 in 1x4 blocks: 15 blocks, 2 bytes of mask; blocks 2, 5, 8, 11 and 14 are cut by the right edge.
ATTACKS = {
    "pattern unknown": (_config(pattern="4"), "pattern: expected"),
    "pattern number": (_config(pattern=4), "pattern: expected"),
    "pattern list": (_config(pattern=["1x4"]), "pattern: expected"),
    "pattern empty": (_config(pattern=""), "pattern: expected"),
    "pattern huge": (_config(pattern="99x99"), "pattern: expected"),
    "pattern with zero": (_config(pattern="0x4"), "pattern: expected"),
    "pattern of long numbers": (_config(pattern="1x" + "4" * 5000), "pattern: expected"),
    "pattern in other digits": (_config(pattern="1x\u0664"), "pattern: expected"),
    "pattern with a line break": (_config(pattern="1x4\n"), "pattern: expected"),
    "pattern 4:2": (_config(pattern="4:2"), "pattern: expected"),
    "pattern of other blocks": (_config(pattern="1x5"), "expected"),
    "pattern null": (_config(pattern=None), "pattern: expected"),
    "kept missing": (lambda parts: parts.layer("0")["config"].pop("kept"), "expected exactly"),
    "kept negative": (_config(kept=-1), "kept: expected"),
    "kept true": (_config(kept=True), "kept: expected"),
    "kept float": (_config(kept=10.0), "kept: expected"),
    "kept too many": (_config(kept=16), "kept: expected"),
    "kept other": (_config(kept=11), r"expected I8 \(11, 4\)"),
    "features wide": (_config(in_features=1 << 20), "in_features"),
    "features huge": (_config(out_features=(1 << 31) - 1), "expected"),
    "kind of a dense layer": (lambda parts: parts.layer("0").update(kind="int8_linear"), "expected exactly"),
    "kind of float values": (lambda parts: parts.layer("0").update(kind="sparse_linear"), "expected exactly"),
    "mask removed": (lambda parts: parts.remove("0.weight_mask"), "has the tensors"),
    "mask signed": (lambda parts: parts.header["0.weight_mask"].update(dtype="I8"), "expected U8"),
    "mask in two rows": (lambda parts: parts.header["0.weight_mask"].update(shape=[1, 2]), "expected U8"),
    "values flat": (lambda parts: parts.header["0.weight_q"].update(shape=[40]), r"expected I8 \(10, 4\)"),
    "bit beyond the grid": (_move_bit, "blocks beyond the 15"),
    "a bit more": (_flip(0, 1), "names 11 blocks and there are values of 10"),
    "a bit less": (_flip(0, 0), "names 9 blocks and there are values of 10"),
    "value beyond the edge": (_values("0.weight_q", 7, 1), "values beyond"),
    "value of -128": (_values("0.weight_q", 0, 0x80), "-128"),
    "scale of infinity": (_rescale, "not all finite and positive"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused(tmp_path: Path, attack: str) -> None:
    change, message = ATTACKS[attack]
    tersor.save(small(), tmp_path / "valid")
    parts = Parts.of((tmp_path / "valid").read_bytes())
    change(parts)
    refuse(tmp_path, parts, message)


def refuse(folder: Path, parts: Parts, message: str) -> None:
    path = folder / "hostile"
    path.write_bytes(parts.pack())
    model = nn.Sequential(nn.Linear(10, 5), nn.LayerNorm(5))
    first, state = model[0], {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(tersor.CheckpointError, match=message) as caught:
        tersor.load(path, model)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
    assert model[0] is first
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_a_block_of_zeros_is_refused(tmp_path: Path) -> None:
    tersor.save(small(), tmp_path / "valid")
    parts = Parts.of((tmp_path / "valid").read_bytes())
    parts.values("0.weight_q")[:4] = bytes(4)
    refuse(tmp_path, parts, "all 0")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_float_values_must_be_finite(tmp_path: Path, value: float) -> None:
    tersor.save(small(SparseLinear), tmp_path / "valid")
    parts = Parts.of((tmp_path / "valid").read_bytes())
    struct.pack_into("<f", parts.values("0.weight_values"), 0, value)
    refuse(tmp_path, parts, "NaN or infinity")


@pytest.mark.parametrize("cls", CLASSES)
def test_a_broken_n_of_m_pattern_is_refused(tmp_path: Path, cls: type) -> None:
    tersor.save(small(cls, "2:4"), tmp_path / "valid")
    parts = Parts.of((tmp_path / "valid").read_bytes())
    mask = parts.values("0.weight_mask")
    mask[0] ^= 0b1100  # (0, 2), (0, 3) move to (1, 0), (1, 1): row 1 then has four in its first group
    mask[1] ^= 0b1100
    refuse(tmp_path, parts, "breaks the pattern 2:4")

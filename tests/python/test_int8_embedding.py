"""Int8Embedding and Int8EmbeddingBag: the rows by definition, every way to call them, state, files, refusals."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.errors import TersorError
from tersor.nn import REGISTRY, Int8Embedding, Int8EmbeddingBag
from tersor.nn.embedding_packed import quantize_rows_4
from tersor.ops import EMBEDDING_BAG_S8, EMBEDDING_S8
from tersor.quantize import dequantize_s8, quantize_s8

KINDS = ("int8_embedding", "int8_embedding_bag")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dim", [1, 7, 16, 33, 100])
def test_rows_are_those_of_the_definition(isa: str, bits: int, dim: int) -> None:
    torch.manual_seed(0)
    module, indices = nn.Embedding(40, dim), torch.randint(0, 40, (3, 4))
    with torch.no_grad():
        module.weight[5] = 0
    layer = Int8Embedding.from_float(module, bits=bits)
    y = layer(indices)
    assert torch.equal(y, layer.weight[indices])
    assert torch.equal(y, layer.to_float()(indices))
    peak = module.weight.detach().abs().amax(1, keepdim=True)
    assert ((layer.weight - module.weight).abs() <= peak / (127 if bits == 8 else 7) / 2 * 1.0001).all()
    if bits == 8:
        assert torch.equal(layer.weight, dequantize_s8(*quantize_s8(module.weight)))
    else:
        assert quantize_rows_4(module.weight)[0].shape == (40, (dim + 1) // 2)
    assert torch.equal(layer(indices.to(torch.int32)), y)
    assert layer(indices[:0]).shape == (0, 4, dim)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags(isa: str, bits: int, mode: str) -> None:
    torch.manual_seed(1)
    for padding in (None, 3):
        module = nn.EmbeddingBag(20, 33, mode=mode, padding_idx=padding)
        layer = Int8EmbeddingBag.from_float(module, bits=bits)
        same: Any = layer.to_float()
        indices = torch.randint(0, 20, (17,))
        indices[4:6] = 3
        offsets = torch.tensor([0, 4, 6, 6, 11])  # an empty bag, and one of padding alone
        torch.testing.assert_close(layer(indices, offsets), same(indices, offsets), rtol=1e-5, atol=1e-6)
        bags = torch.randint(0, 20, (3, 5))
        torch.testing.assert_close(layer(bags), same(bags), rtol=1e-5, atol=1e-6)
        if mode == "sum":
            weights = torch.randn(3, 5)
            got = layer(bags, per_sample_weights=weights)
            torch.testing.assert_close(got, same(bags, per_sample_weights=weights), rtol=1e-5, atol=1e-6)
    last = nn.EmbeddingBag(20, 33, mode=mode, include_last_offset=True)
    edges = torch.tensor([0, 4, 17])
    layer = Int8EmbeddingBag.from_float(last, bits=bits)
    torch.testing.assert_close(layer(indices, edges), layer.to_float()(indices, edges), rtol=1e-5, atol=1e-6)


def test_threads_change_nothing() -> None:
    torch.manual_seed(2)
    layer, indices = Int8Embedding.from_float(nn.Embedding(500, 64)), torch.randint(0, 500, (4000,))
    assert torch.equal(layer(indices), layer.weight[indices])
    bag = Int8EmbeddingBag.from_float(nn.EmbeddingBag(500, 64, mode="sum"))
    many = bag(indices.reshape(400, 10))
    assert torch.equal(many[17], bag(indices.reshape(400, 10)[17:18])[0])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_copies_and_files(kind: str, bits: int, tmp_path: Path) -> None:
    torch.manual_seed(3)
    cls: Any = REGISTRY[kind]
    module, x = cls.float_example()
    layer = cls.from_float(module, bits=bits)
    assert isinstance(layer, type(module))
    other = cls.from_config(layer.config())
    with pytest.raises(TersorError, match="no weights"):
        other(x)
    other.load_state_dict(layer.state_dict())
    again = cls.from_config(layer.config())
    again.load_state_dict(module.state_dict())
    tersor.save(nn.Sequential(layer), tmp_path / "table.tersor")
    loaded = tersor.load(tmp_path / "table.tersor", model=nn.Sequential(copy.deepcopy(module)))[0]
    for twin in (other, again, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert type(twin) is cls
        assert torch.equal(twin(x), layer(x))
    assert layer.to(torch.bfloat16)(x).dtype == torch.bfloat16
    assert layer.packed.numel() == 64 + 50 * (4 + (24 if bits == 8 else 12))  # 21 or 11 bytes, to a multiple of 4
    state = layer.state_dict()
    with pytest.raises(RuntimeError, match="scale"):
        layer.load_state_dict({**state, "weight_scale": -state["weight_scale"]})
    for bad in ({**layer.config(), "bits": 3}, {**layer.config(), "more": 1}, {}, None):
        with pytest.raises(ValueError, match="expected"):
            cls.from_config(bad)


def test_refusals() -> None:
    for module, message in [
        (nn.Embedding(5, 4, max_norm=1.0), "max_norm"),
        (nn.Linear(5, 4), "Linear is not an"),
        (nn.Embedding(5, 4, dtype=torch.float64), "float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            Int8Embedding.from_float(module)
    layer, bag = Int8Embedding.from_float(nn.Embedding(5, 4)), Int8EmbeddingBag.from_float(nn.EmbeddingBag(5, 4))
    with pytest.raises(RuntimeError, match="index 5 is not a row of 5"):
        layer(torch.tensor([1, 5]))
    with pytest.raises(RuntimeError, match="index -1"):
        layer(torch.tensor([-1]))
    with pytest.raises(TersorError, match="int64 or int32, got"):
        layer(torch.randn(3))
    with pytest.raises(TersorError, match="read-only"):
        layer.reset_parameters()
    indices = torch.tensor([0, 1, 2])
    with pytest.raises(TersorError, match="with offsets"):
        bag(indices)
    with pytest.raises(TersorError, match="mode='sum'"):
        bag(indices.reshape(1, 3), per_sample_weights=torch.ones(1, 3))
    with pytest.raises(RuntimeError, match="offsets must rise"):
        bag(indices, torch.tensor([0, 3, 2]))
    with pytest.raises(RuntimeError, match="offsets must rise"):
        bag(indices, torch.tensor([1, 2]))


def test_compile_and_opcheck() -> None:
    layer, indices = Int8Embedding.from_float(nn.Embedding(9, 4)), torch.tensor([1, 8, 0])
    torch.library.opcheck(EMBEDDING_S8, (indices, layer.packed, 4))
    edges: Tensor = torch.tensor([0, 1, 3])
    torch.library.opcheck(EMBEDDING_BAG_S8, (indices, layer.packed, edges, torch.ones(3), 4, 0, -1))
    compiled = torch.compile(lambda x: layer(x) + 1, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(indices), layer(indices) + 1)
    with pytest.raises(RuntimeError, match="dim: the packed embedding has 4"):
        EMBEDDING_S8(indices, layer.packed, 5)
    with pytest.raises(RuntimeError, match="packed embedding"):
        EMBEDDING_S8(indices, layer.packed[:-1], 4)

"""Encoder blocks of low rank: factorised models through compress, swap, files and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_models import KEEP, blocks_of, hidden, make_inputs, make_model
from torch import Tensor, nn

import tersor
from tersor import Recipe, steps
from tersor.blocks import find_blocks
from tersor.encoder.plain import PlainBlock
from tersor.factorize import FactoredLinear, RankRule, factorize
from tersor.lowrank_selection import choose_factored
from tersor.nn import EncoderBlock, Int8Linear, LowRankInt8Linear
from tersor.tune_block import BlockTuner, describe_block


def call(model: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return hidden(model(**make_inputs(name, True)))


def apart(one: Tensor, other: Tensor) -> float:
    kept = KEEP.bool()
    return float((one - other)[kept].norm() / other[kept].norm())


def factored(name: str) -> nn.Module:
    """The float model with FactoredLinear layers."""
    model: nn.Module = make_model(name)
    factorize(model, RankRule("ratio", 0.5, 1), progress=False)
    return model


def products(model: nn.Module, name: str) -> list[dict[str, Any]]:
    """The settings of the four products of every block."""
    found = []
    for path in blocks_of(model):
        block = model.get_submodule(path)
        assert isinstance(block, EncoderBlock), path
        found.append({product: block.config()[product] for product in ("qkv", "out", "up", "down")})
    return found


@pytest.mark.parametrize("name", ["bert", "distilbert", "bart"])
def test_factorize_and_quantize_makes_blocks_of_low_rank(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    recipe = Recipe([steps.Factorize(ratio=0.5, round_to=1), steps.Quantize()])
    result = tersor.compress(model, recipe, make_inputs(name, True), force=True, progress=False)
    rows = [row for row in result.report.rows if row.layer == "EncoderBlock"]
    assert [row.name for row in rows] == blocks_of(model)
    assert all("up 24x16 low-rank int8" in row.parts[2] for row in rows)
    assert all(product["up"]["ranks"] and product["down"]["ranks"] for product in products(result.model, name))
    floats = factored(name)
    y = call(result.model, name)
    assert apart(y, call(floats, name)) < 0.05  # what rounding adds to the factors' own error
    tersor.save(result.model, tmp_path / "model.tersor")
    for loaded in (
        tersor.load(tmp_path / "model.tersor", model=make_model(name)),
        tersor.load(tmp_path / "model.tersor", model=floats),
    ):
        assert torch.equal(call(loaded, name), y)
        assert products(loaded, name) == products(result.model, name)
        assert tersor.restore(loaded) >= 2
        assert not any(isinstance(module, EncoderBlock) for module in loaded.modules())
        assert apart(call(loaded, name), y) < 0.05


@pytest.mark.parametrize("keep_float", [True, False])
def test_swap_and_restore(keep_float: bool) -> None:
    model = factored("bert")
    expected = call(model, "bert")
    report = tersor.swap(model, force=True, progress=False, keep_float=keep_float)
    assert sum(row.layer == "EncoderBlock" for row in report.rows) == 2
    assert all(product["up"]["ranks"] for product in products(model, "bert"))
    assert apart(call(model, "bert"), expected) < 0.05
    with pytest.raises(tersor.SwapError):
        tersor.swap(model, force=True, progress=False)  # the factors inside blocks are no layers to swap
    tersor.restore(model)
    y = call(model, "bert")
    assert torch.equal(y, expected) if keep_float else apart(y, expected) < 0.05
    assert sum(type(module) is FactoredLinear for module in model.modules()) >= 4


def test_a_block_of_low_rank_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against its layers and against float, all of which compute the same, under a name that tells the ranks."""
    model, seen = factored("bert"), []

    def race(one: Any, other: Any, x: Tensor) -> Any:
        first, second = (side[-1](x) for side in (one, other))
        first, second = (y[0] if isinstance(y, tuple) else y for y in (first, second))
        seen.append(float((first - second).norm() / first.norm()))
        return (40.0, 10.0), False

    monkeypatch.setattr("tersor.tune_block.race", race)
    block = find_blocks(model, choose_factored(model, (), (), True)).blocks[0]
    block.shapes = {(1, 7)}
    assert BlockTuner(threads=1, cache=False).judge_block(block).faster
    assert len(seen) == 2
    assert max(seen) < 0.05
    assert describe_block(block, torch.float32).endswith("rank 4 float32")


def factored_block(**ranks: int) -> PlainBlock:
    torch.manual_seed(0)
    block = PlainBlock(32, 2, 48)
    for path, rank in ranks.items():
        layer = block.get_submodule(path)
        setattr(block, path, FactoredLinear(layer.in_features, layer.out_features, rank))
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    return block.eval()


def converted(block: PlainBlock, scale: Tensor | None) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = {}
    for path in ("query", "key", "value", "out", "up", "down"):
        layer = block.get_submodule(path)
        if isinstance(layer, FactoredLinear):
            layers[path] = LowRankInt8Linear.from_float(layer)
        else:
            layers[path] = Int8Linear.from_float(
                layer, input_scale=scale if path in ("query", "key", "value") else None
            )
    return layers


@pytest.mark.parametrize(
    ("ranks", "joint"),
    [
        ({"query": 4, "key": 6, "value": 7}, [4, 6, 7]),
        ({"query": 8, "key": 8, "value": 8}, None),  # 24 * (96 + 32) is no less than 96 * 32
        ({"query": 4, "value": 7}, None),
    ],
)
@pytest.mark.parametrize("smoothed", [False, True])
def test_queries_keys_and_values_become_one(ranks: dict[str, int], joint: list[int] | None, smoothed: bool) -> None:
    """Of low rank only where all three are and it pays; else what the factors hold is multiplied out and rounded."""
    module = factored_block(**ranks, up=8)
    scale = torch.rand(32) + 0.5 if smoothed else None
    x = torch.randn((2, 5, 32), generator=torch.Generator().manual_seed(1))
    made = EncoderBlock.from_layers(module, converted(module, scale))
    config = made.config()
    assert config["qkv"].get("ranks") == joint
    assert config["qkv"]["smoothed"] is (smoothed and len(ranks) < 3)
    assert config["up"]["ranks"] == [8]
    with torch.no_grad():
        expected = module(x)
        assert float((made(x) - expected).norm() / expected.norm()) < 0.05
        inside = torch.cat([made.get_submodule(path).weight for path in ("query", "key", "value")])
        weight = torch.cat([module.get_submodule(path).weight for path in ("query", "key", "value")])
        assert float((inside - weight).norm() / weight.norm()) < 0.02
        assert float((made.float_forward(x) - expected).norm() / expected.norm()) < 0.05


def test_gradients_of_the_input_flow_through_the_factors() -> None:
    module = factored_block(query=4, key=6, value=7, up=8, down=10)
    made = EncoderBlock.from_float(module)
    x = torch.randn((1, 4, 32), generator=torch.Generator().manual_seed(1))
    grads = []
    for block in (made, made.to_float()):
        given = x.clone().requires_grad_()
        block(given).square().sum().backward()
        assert given.grad is not None
        grads.append(given.grad)
    assert float((grads[0] - grads[1]).norm() / grads[1].norm()) < 0.1

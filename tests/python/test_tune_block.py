"""Measuring encoder blocks: what is measured, what it is called in the cache, what tersor.tune says."""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

import pytest
import torch
from encoder_models import make_inputs, make_model

import tersor
from tersor.blocks import find_blocks
from tersor.selection import choose
from tersor.tune_block import BlockTuner, describe_block, shape_bucket


@pytest.mark.parametrize(
    ("shape", "bucket"),
    [((1, 1), (1, 16)), ((3, 17), (4, 32)), ((32, 128), (4, 128)), ((1, 900), (1, 512)), ((100, 5), (32, 16))],
)
def test_shapes_are_measured_in_buckets(shape: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert shape_bucket(*shape) == bucket


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What raced: both sides are called, and the fused block wins by 4 against its layers and by 5 against float."""
    seen: list[Any] = []
    times = itertools.cycle([((40.0, 10.0), False), ((50.0, 10.0), False)])

    def race(one: Any, other: Any, x: torch.Tensor) -> Any:
        seen.append((len(one), len(other), tuple(x.shape)))
        first, second = (side[-1](x) for side in (one, other))
        first, second = (y[0] if isinstance(y, tuple) else y for y in (first, second))
        assert float((first - second).norm() / first.norm()) < 0.05
        return next(times)

    monkeypatch.setattr("tersor.tune_block.race", race)
    monkeypatch.setattr(sys.modules["tersor.tune"], "race", lambda *_: ((9.0, 1.0), False))
    return seen


@pytest.mark.parametrize("name", ["bert", "mpnet", "bart", "torch", "vit"])
def test_float_swapped_layers_and_one_call_compute_the_same(name: str, races: list[Any]) -> None:
    model = make_model(name)
    choices, _ = choose(model, (), (), False)
    block = find_blocks(model, choices).blocks[0]
    block.shapes = {(2, 7)}
    verdict = BlockTuner(threads=1, cache=False).judge_block(block)
    assert [shape for *_, shape in races] == [(2, 16, 16)] * 2
    assert all(one == other > 1 for one, other, _ in races)
    assert verdict.faster
    assert verdict.verdict.float_us == {32: 50.0}
    assert verdict.verdict.tersor_us == {32: 10.0}
    assert "float 50" in verdict.reason
    assert "swapped layers 40" in verdict.reason
    assert describe_block(block, torch.float32).startswith(f"{block.found.family.name} block 16 x 24, 2 heads")


def test_tune_tells_about_blocks(races: list[Any]) -> None:
    model, inputs = make_model("bert"), make_inputs("bert", True)
    result = tersor.tune(model, inputs, threads=1, cache=False, progress=False)
    assert [block.names[0] for block in result.blocks] == ["encoder.layer.0", "encoder.layer.1"]
    assert all(block.verdict is not None and block.rows == (14,) for block in result.blocks)
    assert len(races) == 2  # the second block is like the first
    assert "One call is faster for 2 of 2 encoder blocks" in result.table()
    assert len(json.loads(result.to_json())["blocks"]) == 2

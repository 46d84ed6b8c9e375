"""Patterns, counts, ties and schedules."""

from __future__ import annotations

import math

import pytest
import torch

from tersor.errors import PruneError
from tersor.prune import SCHEDULES, Blocks, Cubic, NofM, OneShot, Unstructured, parse_pattern, register_schedule
from tersor.prune.masks import drop_all, drop_global, drop_in_rows, drop_lowest
from tersor.prune.schedules import Linear, make_schedule

SHAPES = [(1, 1), (1, 4), (3, 5), (8, 16), (7, 30), (33, 17)]
PATTERNS = [Unstructured(), Blocks(1, 4), Blocks(4, 1), Blocks(16, 1), Blocks(3, 5), NofM(2, 4), NofM(1, 3)]


def all_of(shape: tuple[int, int]) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.bool)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("drop", [drop_lowest, drop_in_rows])
def test_counts_are_exact_to_half_a_group(drop, pattern, shape) -> None:  # type: ignore[no-untyped-def]
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    size = 1 if isinstance(pattern, NofM) else pattern.rows * pattern.cols
    for part in (0.0, 0.3, 0.5, 0.77, 1.0):
        count = round(part * pattern.limit(shape))
        stays = drop(pattern, scores, count, all_of(shape))
        assert abs(int((~stays).sum()) - count) <= size / 2
        groups, sizes = pattern.groups(stays.float())
        if not isinstance(pattern, NofM):
            assert bool(((groups == 0) | (groups == 1)).all())  # groups go as a whole
            assert int(sizes.sum()) == shape[0] * shape[1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_all_that_can_go_is_the_highest_count(pattern, shape) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(shape, generator=generator)
    held = torch.rand(shape, generator=generator) > 0.3 if isinstance(pattern, NofM) else all_of(shape)
    limit = pattern.limit(shape)
    assert torch.equal(drop_all(pattern, scores, held), drop_lowest(pattern, scores, limit, held))


def test_the_lowest_groups_go() -> None:
    scores = torch.tensor([[9.0, 0, 0, 0, 1, 1, 1, 1], [5, 5, 5, 5, 2, 2, 2, 0]])
    stays = drop_lowest(Blocks(1, 4), scores, 8, all_of((2, 8)))
    assert stays.tolist() == [[True] * 4 + [False] * 4, [True] * 4 + [False] * 4]  # means 2.25 and 1, 5 and 1.5
    stays = drop_lowest(NofM(2, 4), scores, 8, all_of((2, 8)))
    assert stays.reshape(-1, 4).sum(1).tolist() == [2, 2, 2, 2]
    assert stays[0, 0]
    assert not stays[1, 7]
    stays = drop_in_rows(Unstructured(), scores, 6, all_of((2, 8)))
    assert stays.sum(1).tolist() == [5, 5]


@pytest.mark.parametrize("drop", [drop_lowest, drop_in_rows])
def test_ties_go_to_the_first(drop) -> None:  # type: ignore[no-untyped-def]
    stays = drop(Blocks(1, 2), torch.ones(1, 8), 4, all_of((1, 8)))
    assert stays.tolist() == [[False] * 4 + [True] * 4]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("drop", [drop_lowest, drop_in_rows])
def test_what_is_gone_stays_gone(drop, pattern) -> None:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(2)
    stays = all_of((33, 17))
    for part in (0.2, 0.3, 0.33, 0.5, 0.51, 0.9):
        count = round(part * pattern.limit((33, 17)))
        following = drop(pattern, torch.rand(33, 17, generator=generator), count, stays)
        assert not bool((following & ~stays).any())
        size = 1 if isinstance(pattern, NofM) else pattern.rows * pattern.cols
        assert abs(int((~following).sum()) - count) <= size / 2
        stays = following


def test_global_scores_are_compared_over_layers() -> None:
    small, large = torch.rand(4, 8), 10 + torch.rand(4, 8)
    stays = drop_global(Blocks(1, 4), [small, large], 40, [all_of((4, 8)), all_of((4, 8))])
    assert int(stays[0].sum()) == 0
    assert int(stays[1].sum()) == 24


def test_patterns_by_name() -> None:
    for pattern in PATTERNS:
        assert parse_pattern(str(pattern)) == pattern
    for wrong in ("", "4", "0x4", "1x", "4:2", "4:4", "0:4", "x4", "1X4"):
        with pytest.raises(PruneError):
            parse_pattern(wrong)


def test_schedule_curves() -> None:
    assert [Cubic(steps=100).part(step) for step in (0, 50, 100, 200)] == [0.0, 0.875, 1.0, 1.0]
    assert [Linear(steps=100, begin=20).part(step) for step in (0, 20, 60, 100)] == [0.0, 0.0, 0.5, 1.0]
    assert [OneShot(steps=5).part(step) for step in (0, 4, 5)] == [0.0, 0.0, 1.0]
    due = [step for step in range(12) if Cubic(steps=10, every=4, begin=2).due(step)]
    assert due == [6, 10]
    assert [step for step in range(3) if OneShot().due(step)] == [0]


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_rises_to_one(name: str) -> None:
    parts = [make_schedule(name, 17, 3).part(step) for step in range(20)]
    assert parts == sorted(parts)
    assert parts[17] == 1.0
    assert make_schedule(name, 17, 3).due(17)
    assert all(0 <= part <= 1 and math.isfinite(part) for part in parts)


def test_bad_schedules_are_named() -> None:
    for arguments in ({"steps": -1}, {"steps": 3, "begin": 4}, {"every": 0}):
        with pytest.raises(PruneError):
            Cubic(**arguments)
    with pytest.raises(PruneError, match="known: one_shot, linear, cubic"):
        make_schedule("square", 1, 1)
    with pytest.raises(PruneError, match="needs steps"):
        make_schedule("cubic", 0, 1)
    with pytest.raises(PruneError, match="twice"):
        make_schedule(Cubic(steps=3), 4, 1)
    with pytest.raises(ValueError, match="a name of its own"):
        register_schedule(type("Other", (Cubic,), {"name": "linear"}))

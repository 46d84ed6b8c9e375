"""Two processes that hold half of a model each give what one process gives, and go on after one of them is killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_worker import distilled, small, work
from torch import distributed
from two_processes import run_two, run_until_one_is_killed

from tersor import TrainError, processes
from tersor.benchmark import torch_threads
from tersor.training import read_state, sharding, train

SCRIPT = Path(__file__).parent / "sharded_worker.py"
BOUND = 2e-5
"""Of the largest entry of a tensor: gradients are added in another order."""

gloo = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available() and sharding.AVAILABLE),
    reason="this torch has no Gloo or no fully_shard",
)


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Equal masks, close weights. Keys of attention have no gradient at their bias: Adam makes steps of the noise."""
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        value = found[name]
        if isinstance(wanted, dict):
            close(value, wanted)
        elif wanted.dtype == torch.bool:
            assert torch.equal(value, wanted), name
        else:
            if name.endswith("in_proj_bias"):
                value, wanted = (torch.cat([one[:8], one[16:]]) for one in (value, wanted))
            assert float((value - wanted).abs().max()) <= BOUND * float(wanted.abs().max()), name


@gloo
def test_two_halves_give_what_one_process_gives(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with torch_threads(1):  # as the others do: sums in another order may fall on the other side of a rounding step
        expected = work(tmp_path / "one")
    start = small().state_dict()
    assert all(not torch.equal(expected["kept"][name], start[name]) for name in start)
    run_two(SCRIPT, tmp_path)
    first, second = (read_state(tmp_path / f"result{rank}") for rank in range(2))
    close(first, expected)
    for name in (name for name in first if name != "values"):
        assert all(torch.equal(value, second[name][key]) for key, value in first[name].items())


@gloo
def test_a_killed_half_is_reported_and_the_state_serves_one_process(tmp_path: Path) -> None:
    error = run_until_one_is_killed(SCRIPT, tmp_path, 5)
    assert "another process of the group has gone" in error
    assert "with the same state file" in error
    assert read_state(tmp_path / "state")["losses"].numel() in (4, 5)
    (tmp_path / "whole").mkdir()
    close(distilled(tmp_path), distilled(tmp_path / "whole"))  # one process goes on where two halves were


def test_one_process_splits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    own = list(model.parameters())
    with sharding.sharded(model):
        assert all(one is two for one, two in zip(model.parameters(), own, strict=True))
    train(model, [torch.randn(2, 12)], lambda one, x: one(x).square().mean(), shard=True, progress=False)
    monkeypatch.setattr(processes, "size", lambda: 2)
    monkeypatch.setattr(sharding, "AVAILABLE", False)
    with pytest.raises(TrainError, match="shard=True needs"), sharding.sharded(model):
        pass

"""Two processes give what one gives; one that is killed leaves a clear error and a state to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from prune_models import loss, net, noise
from scale_worker import work
from torch import distributed
from two_processes import run_two, run_until_one_is_killed

from tersor import TrainError
from tersor.training import group, read_state, train

SCRIPT = Path(__file__).parent / "scale_worker.py"

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch has no Gloo"
)


def close(found: Any, expected: Any) -> None:
    """Equal masks; numbers equal to a few roundings, for gradients are added in another order."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            close(found[key], value)
    elif isinstance(expected, list):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    elif expected.dtype == torch.bool:
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_torchrun_gives_what_one_process_gives(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    expected = work(tmp_path / "one")
    printed = run_two(SCRIPT, tmp_path)
    assert "processes 2" in printed
    close(read_state(tmp_path / "result"), expected)


def test_a_killed_worker_is_reported_and_the_training_goes_on(tmp_path: Path) -> None:
    error = run_until_one_is_killed(SCRIPT, tmp_path, 5)
    assert "tersor.errors.GoneError: another process of the group has gone" in error
    assert "start all of them again with the same state file" in error
    assert read_state(tmp_path / "state")["losses"].numel() in (4, 5)
    (tmp_path / "whole").mkdir()
    close(work(tmp_path), work(tmp_path / "whole"))  # one process goes on where two were


def test_what_cannot_be_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "size", lambda: 2)
    with (
        pytest.raises(TrainError, match="2 processes can't share 3 batches per optimiser step evenly"),
        group.joined(net(), 3),
    ):
        pass
    monkeypatch.undo()
    assert (group.size(), group.rank(), group.is_first()) == (1, 0, True)
    with group.launched() as rank:
        assert rank == 0
        train(net(), noise(), loss, progress=False)

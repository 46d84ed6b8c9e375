"""Two processes give what one gives; one that is killed leaves a clear error and a state to go on from."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from prune_models import loss, net, noise
from scale_worker import work
from torch import distributed

from tersor import TrainError
from tersor.training import group, read_state, train

SCRIPT = str(Path(__file__).parent / "scale_worker.py")

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
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "processes 2" in done.stdout
    close(read_state(tmp_path / "result"), expected)


def test_a_killed_worker_is_reported_and_the_training_goes_on(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(tmp_path), "5"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=240)[1] for worker in workers]
    assert workers[1].returncode == -9
    assert workers[0].returncode == 1
    assert "tersor.errors.GoneError: another process of the group has gone" in errors[0]
    assert "start all of them again with the same state file" in errors[0]
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

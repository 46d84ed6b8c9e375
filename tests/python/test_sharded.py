"""Two processes that hold half of a model each give what one process gives, and go on after one of them is killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_worker import distilled, small, work
from torch import distributed

from tersor import TrainError, processes
from tersor.benchmark import torch_threads
from tersor.training import read_state, sharding, train

SCRIPT = str(Path(__file__).parent / "sharded_worker.py")
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
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (read_state(tmp_path / f"result{rank}") for rank in range(2))
    close(first, expected)
    for name in (name for name in first if name != "values"):
        assert all(torch.equal(value, second[name][key]) for key, value in first[name].items())


@gloo
def test_a_killed_half_is_reported_and_the_state_serves_one_process(tmp_path: Path) -> None:
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
    assert "another process of the group has gone" in errors[0]
    assert "with the same state file" in errors[0]
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

"""Worker scripts run in two processes of one group: to their end, and with one of them killed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

SECONDS = 240
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def run_two(script: Path, folder: Path) -> str:
    """What `torchrun` with two processes of a script prints; both have to succeed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(script), str(folder)],
        env={**os.environ, **_ONE_THREAD},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def run_until_one_is_killed(script: Path, folder: Path, step: int) -> str:
    """What the first process says when the second one, at a step of its training, kills itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {**os.environ, **_ONE_THREAD, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(step)],
            env={**group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=SECONDS)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [1, -9], errors[0][-2000:]
    return errors[0]

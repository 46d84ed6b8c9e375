"""What two processes do in the tests: python scale_worker.py OUT [STEP to be killed at].

Distils, prunes gradually, trains with rounding and calibrates; rank 0 writes what came out. ``work`` is the same
without a process group.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from distill_models import Texts, make, texts
from torch import Tensor, nn
from torch.nn import functional

from tersor import prune
from tersor.distill import fit
from tersor.quantize.calibration import calibrate
from tersor.quantize.qat import QAT, Scheme
from tersor.training import group, train, write_state

ROWS = [(torch.randn(6, 12), torch.arange(6) % 4) for _ in range(5)] if torch.manual_seed(3) else []


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def work(folder: Path, kill_at: int | None = None) -> dict[str, Any]:
    """The state dicts of a distilled and of a pruned model, masks and observed ranges."""
    student, steps = make(Texts, 2, 8), 0

    class Deadly(torch.optim.AdamW):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == kill_at and group.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step(*args, **kwargs)

    settings: dict[str, Any] = {"epochs": 3, "accumulate": 2, "clip": 0.5, "progress": False}
    losses = ["hidden", {"loss": "cosine", "schedule": "fall"}]
    fit(
        student,
        make(Texts, 4, seed=1),
        texts(5),  # an odd number: one rank has no batch in each epoch's last step
        losses,
        mode="eval",
        optimizer=Deadly,
        state=folder / "state",
        save_seconds=0,
        **settings,
    )
    torch.manual_seed(0)
    pruned = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))
    result = prune.fit(pruned, ROWS, loss, criterion="wanda", sparsity=0.5, removals=4, **settings)
    torch.manual_seed(0)
    rounded = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 4))
    train(rounded, ROWS, loss, companions=[QAT(rounded, Scheme(activations="static"), steps=9)], **settings)
    observed = calibrate(pruned, [batch[0] for batch in ROWS], observer="percentile", progress=False)
    ranges = {name: list(one.range()) for name, one in observed.observers.items()}
    return {
        "student": student.state_dict(),
        "pruned": pruned.state_dict(),
        "masks": {name: tensor == 0 for name, tensor in pruned.state_dict().items()},
        "rounded": rounded.state_dict(),
        "ranges": ranges,
        "losses": result.losses,
    }


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with group.launched(timeout=60) as rank:
        found = work(folder, int(sys.argv[2]) if len(sys.argv) > 2 else None)
        if rank == 0:
            write_state(folder / "result", found)
            print("processes", group.size(), flush=True)


if __name__ == "__main__":
    main()

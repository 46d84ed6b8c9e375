"""What two processes with split weights do in the tests: python sharded_worker.py OUT [STEP to be killed at].

``work`` is the same in one process.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from distill_models import Texts, make, texts
from scale_worker import ROWS, loss
from torch import nn
from torch.distributed import is_initialized
from torch.distributed.tensor import DTensor

from tersor import prune
from tersor.distill import fit
from tersor.prune.zeros import KeptZeros
from tersor.quantize.qat import QAT, Scheme
from tersor.training import group, train, write_state


def small() -> nn.Sequential:
    """Linear layers whose rows don't divide by two."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 33), nn.ReLU(), nn.Sequential(nn.Linear(33, 17), nn.ReLU()), nn.Linear(17, 4))


SETTINGS: dict[str, Any] = {"epochs": 3, "accumulate": 2, "clip": 0.5, "progress": False, "shard": True}


def distilled(folder: Path, kill_at: int | None = None) -> dict[str, Any]:
    """The state dict of a distilled model, and its values after each epoch."""
    student, teacher = make(Texts, 2, 8), make(Texts, 4, seed=1)
    own = [list(model.parameters()) for model in (student, teacher)]
    steps = 0

    class Deadly(torch.optim.AdamW):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            parts = [isinstance(one, DTensor) for one in [*student.parameters(), *teacher.parameters()]]
            assert all(parts) if is_initialized() else not any(parts)
            if steps == kill_at and group.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step(*args, **kwargs)

    def judge(model: nn.Module) -> float:
        return -sum(float(model(**batch)["logits"].square().mean()) for batch in texts(2))

    losses = ["hidden", {"loss": "cosine", "schedule": "fall"}]
    state = {"state": folder / "state", "save_seconds": 0, "optimizer": Deadly}
    result = fit(student, teacher, texts(5), losses, mode="eval", evaluate=judge, **state, **SETTINGS)
    for model, parameters in zip((student, teacher), own, strict=True):
        assert all(one is two for one, two in zip(model.parameters(), parameters, strict=True))
    assert type(student) is Texts
    return {"student": student.state_dict(), "values": torch.tensor(result.trained.values)}


def work(folder: Path, kill_at: int | None = None) -> dict[str, Any]:
    """The state dicts of models that were distilled, recovered, pruned and trained with rounding."""
    found = distilled(folder, kill_at)
    for criterion in ("magnitude", "wanda", "sparsegpt", "gradient"):
        pruned = small()
        prune.fit(pruned, ROWS, loss, criterion=criterion, sparsity=0.5, removals=3, pattern="1x4", **SETTINGS)
        assert type(pruned[0]) is nn.Linear
        found[criterion] = pruned.state_dict()
        found[f"{criterion} zeros"] = {name: tensor == 0 for name, tensor in pruned.state_dict().items()}
    kept = small()
    prune.Pruner(kept, pattern="unstructured", sparsity=0.6).finish()
    train(kept, ROWS, loss, companions=[KeptZeros(kept)], **SETTINGS)
    found["kept"] = kept.state_dict()
    found["kept zeros"] = {name: tensor == 0 for name, tensor in kept.state_dict().items()}
    for activations in ("dynamic", "static"):
        rounded = small()
        qat = QAT(rounded, Scheme(activations=activations), steps=9)
        train(rounded, ROWS, loss, companions=[qat], **SETTINGS)
        found[f"qat {activations}"] = rounded.state_dict()
    return found


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with group.launched(timeout=60) as rank:
        found = work(folder, int(sys.argv[2]) if len(sys.argv) > 2 else None)
        write_state(folder / f"result{rank}", found)
        print("processes", group.size(), flush=True)


if __name__ == "__main__":
    main()

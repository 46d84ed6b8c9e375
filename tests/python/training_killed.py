"""A training that a test kills: python training_killed.py STATE. Prints a line for every step, then a digest."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import torch
from distill_models import Texts, make, texts
from torch import nn
from torch.utils.data import DataLoader

from tersor.distill import fit
from tersor.prune import Pruner


class Loud(torch.optim.AdamW):
    """Says when it has made a step."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        super().step(*args, **kwargs)
        print("step", flush=True)


def main(state: str) -> None:
    torch.set_num_threads(1)
    student, teacher = make(Texts, 2, 8), make(Texts, 4, seed=1)
    rows = [{key: value[row] for key, value in batch.items()} for batch in texts(4) for row in range(6)]
    loader = DataLoader(rows, batch_size=4, shuffle=True)  # type: ignore[arg-type]
    pruner = Pruner(student, sparsity=0.5, schedule="cubic", steps=10, every=2, include=["blocks.*"])

    def evaluate(model: nn.Module) -> float:
        return -float(model(**texts(1)[0])["hidden"].square().mean())

    settings: dict[str, Any] = {"epochs": 4, "accumulate": 2, "rate": "cosine", "clip": 1.0, "evaluate": evaluate}
    settings |= {"optimizer": Loud, "companions": [pruner], "progress": False, "save_seconds": 0}
    result = fit(student, teacher, loader, ["hidden", "attention_map"], state=state, seed=7, **settings)
    pruner.finish()
    digest = hashlib.sha256()
    for tensor in student.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    print("digest", digest.hexdigest(), len(result.losses), result.trained.resumed, result.trained.best, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

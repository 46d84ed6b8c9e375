"""What a training step of MiniLM's recovery costs on one thread, in float32 and under bfloat16 autocast.

python bench/train_step.py

CPU time, so that a busy host changes little.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from minilm_data import model
from recover import hidden

from tersor.training import adamw

SHAPES = ((32, 64), (16, 128))  # batch, tokens


def seconds(work: Callable[[], object], rounds: int = 3) -> float:
    """The least of several runs after a first one."""
    work()
    found = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def main() -> None:
    """Print tokens per second of the teacher and of a student's step, and milliseconds of the optimisers."""
    torch.set_num_threads(1)
    teacher, student = model().eval().requires_grad_(False), model()
    trained = [one for one in student.parameters() if one.requires_grad]
    print("batch x tokens  dtype     teacher  student (tokens per second)")
    for batch, tokens in SHAPES:
        ids = torch.randint(1000, 30000, (batch, tokens))
        for dtype in (None, torch.bfloat16):

            def answer(ids: torch.Tensor = ids, dtype: torch.dtype | None = dtype) -> torch.Tensor:
                with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
                    return torch.stack(hidden(teacher, ids)).float()

            wanted = answer()

            def step(ids: torch.Tensor = ids, dtype: torch.dtype | None = dtype, wanted: torch.Tensor = wanted) -> None:
                for one in trained:
                    one.grad = None
                with torch.autocast("cpu", dtype, enabled=dtype is not None):
                    found = torch.stack(hidden(student, ids)).float()
                (found - wanted).square().mean().backward()  # type: ignore[no-untyped-call]

            rates = [batch * tokens / seconds(work) for work in (answer, step)]
            name = "float32" if dtype is None else "bfloat16"
            print(f"{batch:5} x {tokens:4}    {name:8} {rates[0]:8.0f} {rates[1]:8.0f}")
    for name, make in (("AdamW", torch.optim.AdamW), ("tersor.training.adamw", adamw(1e-6))):
        optimizer = make(copy.copy(trained))
        print(f"{name}: {seconds(optimizer.step) * 1e3:.1f} ms a step")


if __name__ == "__main__":
    main()

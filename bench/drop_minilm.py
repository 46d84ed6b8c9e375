"""MiniLM-L6 with fewer layers: chosen by block influence or by loss, at once and after a short recovery.

    python bench/drop_minilm.py --count 2 --steps 120

Texts: see minilm_task.py; `--tokens FILE` keeps them, tokenised. The recovery teaches each layer that stays what the
float model has before the next one that stays.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import recover
import torch
import typer
from minilm_task import Judge
from prune_minilm import prepare
from torch import Tensor, nn

import tersor
from tersor.host import cpu_model
from tersor.restructure import drop_layers


def dropped(model: nn.Module, crops: recover.Crops, count: int, by: Any) -> tuple[nn.Module, list[int], dict[str, Any]]:
    """A copy with fewer layers, the numbers of those that stay, and what was found."""
    small = copy.deepcopy(model)
    random = torch.Generator().manual_seed(1)
    batches = [{"input_ids": crops.draw(64, 16, random)} for _ in range(2)]

    def loss(changed: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        wanted, found = (recover.pool(each(**batch).last_hidden_state) for each in (model, changed))
        return 1 - (wanted * found).sum(1).mean()

    began = time.perf_counter()
    result = drop_layers(small, batches, count, by=by, stack="encoder.layer", loss=loss if by == "loss" else None)
    gone = {int(name.rpartition(".")[2]) for name in result.dropped}
    found = {"by": by, "dropped": sorted(gone), "seconds": round(time.perf_counter() - began, 1)}
    found |= {"scores": {name: round(score, 4) for name, score in result.scores.items()}}
    return small, [layer for layer in range(6) if layer not in gone], found


def teach(
    student: nn.Module, teacher: nn.Module, crops: recover.Crops, stay: list[int], steps: int, tokens: int, lr: float
) -> float:
    """Trains the encoder of ``student``; returns the last loss."""
    aims = [following - 1 for following in [*stay[1:], 6]]
    trained = [parameter.requires_grad_(True) for parameter in student.get_submodule("encoder").parameters()]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    random, order = torch.Generator().manual_seed(2), np.random.default_rng(2)
    lengths, chances = zip(*recover.LENGTHS, strict=True)
    last = 0.0
    for step in range(steps):
        length = int(order.choice(lengths, p=chances))
        ids = crops.draw(length, max(1, tokens // length), random, replaced=0.2)
        with torch.no_grad():
            whole = recover.hidden(teacher, ids)
        wanted, found = torch.stack([whole[aim] for aim in aims]), torch.stack(recover.hidden(student, ids))
        errors = (found - wanted).square().mean(dim=(1, 2, 3)) / wanted.var(dim=(1, 2, 3))
        cosine = (recover.pool(found[-1]) * recover.pool(wanted[-1])).sum(1).mean()
        loss = errors.mean() + 4 * (1 - cosine)
        optimizer.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 10) * (1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        last = float(loss.detach())
        if step % 20 == 0:
            print(f"step {step}: {last:.4f}", flush=True)
    return last


def main(
    count: Annotated[int, typer.Option(help="Layers to drop.")] = 2,
    by: Annotated[list[str], typer.Option(help="influence, loss.")] = ["influence", "loss"],  # noqa: B006
    steps: Annotated[int, typer.Option(help="Optimiser steps of recovery.")] = 120,
    batch: Annotated[int, typer.Option(help="Tokens per step.")] = 1024,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 3e-4,
    probe: Annotated[
        int, typer.Option(help="Texts of R8 that the probe is fitted to; half as many are judged.")
    ] = 2000,
    tokens: Annotated[Path | None, typer.Option(help="Keeps the tokenised texts (.npz).")] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    out: Annotated[Path | None, typer.Option("--json", help="Results, written after every run.")] = None,
    keep: Annotated[Path | None, typer.Option(help="The recovered model as a .tersor file.")] = None,
) -> None:
    """Drop layers of MiniLM-L6 and judge what is left."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    model, task = prepare(None, tokens)
    model.eval().requires_grad_(False)
    task = replace(
        task,
        r8_train=task.r8_train[:probe],
        r8_train_labels=task.r8_train_labels[:probe],
        r8_test=task.r8_test[: probe // 2],
        r8_test_labels=task.r8_test_labels[: probe // 2],
    )
    device = torch.device("cpu")
    judge, crops = Judge(task, model, device), recover.Crops(task.recovery, device)
    result: dict[str, Any] = {"command": f"python bench/drop_minilm.py {' '.join(sys.argv[1:])}", "cpu": cpu_model()}
    result |= {"float": judge(model), "rows": []}
    print(result["float"], flush=True)
    for number, how in enumerate(by):
        small, stay, found = dropped(model, crops, count, how)
        row: dict[str, Any] = {**found, "steps": 0, **judge(small)}
        result["rows"].append(row)
        print(row, flush=True)
        if number == len(by) - 1 and steps:
            began = time.perf_counter()
            last = teach(small, model, crops, stay, steps, batch, lr)
            spent = round(time.perf_counter() - began, 1)
            result["rows"].append({"by": how, "steps": steps, "loss": last, "seconds": spent, **judge(small)})
            print(result["rows"][-1], flush=True)
            if keep is not None:
                tersor.save(small, keep)
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

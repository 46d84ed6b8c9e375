"""Every pruning criterion on MiniLM-L6: how much of the float model is left, at once and after recovery.

    python bench/prune_minilm.py --sparsity 0.5 --pattern 1x4
    python bench/prune_minilm.py --criterion wanda --sparsity 0.8 --pattern 1x4 --steps 1000 --device cuda

Texts: see minilm_task.py; `--tokens FILE` keeps them, tokenised, for machines without the packages. The linear layers
of the encoder are pruned; the recovery trains the encoder (its norms and biases too), not the embeddings.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import recover
import torch
import typer
from minilm_task import Judge, Task, build, load
from torch import nn

from tersor import demo_data
from tersor.host import cpu_model
from tersor.prune import CRITERIA

COLUMNS = ("cosine_lee", "cosine_r8", "lee", "wordsim", "r8")
NAMES, PATTERNS, SPARSITIES = sorted(CRITERIA), ["unstructured", "1x4", "2:4"], [0.5, 0.7, 0.8, 0.9]


def prepare(folder: Path | None, tokens: Path | None) -> tuple[nn.Module, Task]:
    """The float model and the texts, from the installed packages or from files."""
    from transformers import AutoModel, AutoTokenizer

    place = folder or demo_data.model_folder()
    model = AutoModel.from_pretrained(place, attn_implementation="sdpa").float()
    if tokens is not None and tokens.is_file():
        return model, load(tokens)
    task = build(AutoTokenizer.from_pretrained(place))
    if tokens is not None:
        task.save(tokens)
    return model, task


def keep(model: nn.Module, path: Path) -> None:
    """The encoder's weights as float32 in one compressed file; the embeddings are those of the float model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.cpu().numpy() for name, value in model.state_dict().items() if name.startswith("encoder.")}
    np.savez_compressed(path, **state)


def describe(row: dict[str, Any]) -> str:
    """One line of the printed table."""
    figures = " ".join(f"{row[column]:10.4f}" for column in COLUMNS)
    head = f"{row['criterion']:10} {row['pattern']:12} {row['sparsity']:8.2f} {row['steps']:6}"
    return f"{head} {figures} {row['seconds']:7.1f}"


def device_name(device: torch.device) -> str:
    """The GPU or the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def run(bench: recover.Bench, judge: Judge, name: str, shape: str, level: float, count: int) -> dict[str, Any]:
    """One pruning with ``count`` steps of recovery, judged."""
    bench.settings, started = replace(bench.settings, steps=count), time.perf_counter()
    losses: list[tuple[int, float]] = []
    pruned = bench.run(name, shape, level, watch=lambda step, loss: losses.append((step, loss)))
    spent = round(time.perf_counter() - started, 2)
    row = {"criterion": name, "pattern": shape, "sparsity": level, "steps": count, "reached": pruned.sparsity}
    return {**row, "seconds": spent, "losses": losses, **judge(bench.student)}


def main(
    criterion: Annotated[list[str], typer.Option(help="Criteria.")] = NAMES,
    pattern: Annotated[list[str], typer.Option(help="Patterns; N:M ones only at 0.5.")] = PATTERNS,
    sparsity: Annotated[list[float], typer.Option(help="Sparsities.")] = SPARSITIES,
    steps: Annotated[list[int], typer.Option(help="Optimiser steps of recovery; 0 prunes at once.")] = [0],  # noqa: B006
    removals: Annotated[int, typer.Option(help="Portions in which weights leave; 1: all at once.")] = 1,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 5e-4,
    batch: Annotated[int, typer.Option(help="Tokens per step.")] = 4096,
    pooled: Annotated[float, typer.Option(help="Weight of the embeddings' cosine in the loss.")] = 4.0,
    model: Annotated[Path | None, typer.Option(help="Folder of the model instead of the package's.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Keeps the tokenised texts (.npz).")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    graphs: Annotated[bool, typer.Option(help="CUDA graphs for the recovery.")] = True,
    seconds: Annotated[float, typer.Option(help="Start no further run after this long.")] = 1e9,
    out: Annotated[Path | None, typer.Option("--json", help="Results, written after every run.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder for the encoders' weights after recovery.")] = None,
) -> None:
    """Prune MiniLM-L6 in many ways and print what is left of it."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    began, place = time.perf_counter(), torch.device(device)
    float_model, task = prepare(model, tokens)
    float_model = float_model.to(place)
    judge = Judge(task, float_model, place)
    settings = recover.Settings(lr=lr, tokens=batch, removals=removals, pooled=pooled)
    bench = recover.Bench(float_model, task.recovery, place, settings, graphs)
    command = f"python bench/prune_minilm.py {' '.join(sys.argv[1:])}"
    result: dict[str, Any] = {"command": command, "device": device_name(place), "settings": asdict(settings)}
    result |= {"float": judge(float_model), "rows": []}
    print(f"{'criterion':10} {'pattern':12} sparsity  steps {' '.join(f'{column:>10}' for column in COLUMNS)} seconds")
    whole = {"criterion": "(float)", "pattern": "", "sparsity": 0, "steps": 0, "seconds": 0}
    print(describe({**whole, **result["float"]}), flush=True)
    levels = dict.fromkeys((shape, 0.5 if ":" in shape else level) for level in sparsity for shape in pattern)
    for count, (shape, level), name in itertools.product(steps, levels, criterion):
        if time.perf_counter() - began > seconds:
            break
        row = run(bench, judge, name, shape, level, count)
        result["rows"].append(row)
        print(describe(row), flush=True)
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")
        if weights is not None and count:
            keep(bench.student, weights / f"{name}-{shape}-{level:g}-{count}.npz")


if __name__ == "__main__":
    typer.run(main)

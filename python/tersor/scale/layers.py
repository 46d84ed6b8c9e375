"""Layers compressed one by one from safetensors files; a worker never holds more than one of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from tersor import observe, processes
from tersor.errors import TersorError
from tersor.modules import linear_types
from tersor.nn.float_linear import weight_matrix
from tersor.scale.engines import map_over
from tersor.scale.jobs import LayerJob, check
from tersor.selection import matches
from tersor.training import read_state, write_state


@dataclass(frozen=True)
class SolvedLayer:
    """One layer.

    Attributes:
        name: of its weight in the source files.
        path: the file with its result, see :func:`tersor.training.read_state`.
        shape: of the weight.
        error: relative error of the layer's outputs on its inputs where their second moments are known, else of the
            weight, ``|W' - W| / |W|`` (2-norms).
        seconds: that it took; 0 where an earlier run had solved it.
    """

    name: str
    path: Path
    shape: tuple[int, int]
    error: float
    seconds: float


@dataclass(frozen=True)
class _Task:
    source: Path
    name: str
    gram: Path | None
    out: Path
    job: LayerJob


def gather_grams(model: nn.Module, batches: Iterable[Any], folder: Path, include: Sequence[str] = ()) -> list[str]:
    """Write the mean of ``x x^T`` of every selected linear layer's inputs, one file each.

    In a process group the batches are shared out and the sums added up; the first process writes the files.

    Memory: ``4 in^2`` bytes for each selected layer; give the layers of a part of the model at a time in ``include``.

    Returns:
        The names of the weights, such as ``"encoder.layer.0.output.dense.weight"``.

    Raises:
        TersorError: no layer is selected.
        SwapError: the model failed on a batch.
    """
    layers = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, linear_types()) and (not include or matches([name], include) is not None)
    }
    if not layers:
        raise TersorError("include selects no linear layer")
    sums: dict[nn.Module, Tensor] = {}
    tokens = dict.fromkeys(layers, 0)

    def note(layer: nn.Module, x: Tensor, _: Tensor) -> None:
        rows = x.detach().flatten(0, -2).float()
        sums[layer] = rows.T @ rows + sums.get(layer, 0.0)
        tokens[layer] += len(rows)

    with observe.watching(layers, note):
        processes.share(batches, lambda index, batch: observe.run(model, batch, f"calibration batch {index}"))
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for layer, name in layers.items():
        seen = sum(processes.gather(tokens[layer]))
        if seen:
            names.append(f"{name}.weight")
            width = weight_matrix(layer).shape[1]
            gram = processes.total(sums[layer] if layer in sums else torch.zeros(width, width)) / seen
            if processes.rank() == 0:
                write_state(folder / f"{names[-1]}.gram", {"gram": gram})
    return names


def solve_layers(
    sources: Iterable[Path],
    out: Path,
    job: LayerJob,
    *,
    grams: Path | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    engine: str = "here",
    workers: int = 2,
) -> list[SolvedLayer]:
    """Compress every matrix in safetensors files, each by a task of its own.

    A task reads one matrix, and its second moments where there are any, and writes its result in one step. What a file
    in ``out`` holds already is not solved again, so an interrupted call goes on. Peak memory of a worker: about
    ``4 * out * in`` bytes several times over, and ``24 in^2`` for jobs of second order.

    Args:
        sources: safetensors files, as Hugging Face folders hold.
        out: a folder for the results.
        job: what to do.
        grams: the folder of :func:`gather_grams`; matrices without a file there are left out where the job needs one.
        include, exclude: shell wildcards on the tensors' names.
        engine, workers: see :func:`tersor.scale.map_over`; on a cluster all hosts have to see the folders.

    Raises:
        TersorError: nothing is selected, or data that the job needs is missing.
    """
    check(job, grams)
    out.mkdir(parents=True, exist_ok=True)
    tasks = []
    for source in sources:
        with safe_open(source, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                if len(file.get_slice(name).get_shape()) != 2 or matches([name], exclude) is not None:
                    continue
                gram = None if grams is None else grams / f"{name}.gram"
                known = gram is not None and gram.exists()
                if (not include or matches([name], include) is not None) and (known or not job.needs_gram):
                    tasks.append(_Task(source, name, gram if known else None, out / f"{name}.{job.name}", job))
    if not tasks:
        raise TersorError("the files hold no matrix that is selected")
    return list(map_over(_solve, tasks, engine=engine, workers=workers))


def _solve(task: _Task) -> SolvedLayer:
    if task.out.exists():
        state = read_state(task.out)
        return SolvedLayer(task.name, task.out, tuple(state["shape"]), state["error"], 0.0)
    started = time.perf_counter()
    with safe_open(task.source, framework="pt") as file:
        weight = file.get_tensor(task.name).float()
    gram = None if task.gram is None else read_state(task.gram)["gram"]
    found, solved = task.job.solve(weight, gram)
    error = _error(weight, solved, gram)
    state = {"job": task.job.name, "shape": list(weight.shape), "error": error, "tensors": dict(found)}
    write_state(task.out, state)
    return SolvedLayer(task.name, task.out, tuple(weight.shape), error, time.perf_counter() - started)


def _error(weight: Tensor, solved: Tensor, gram: Tensor | None) -> float:
    difference = solved - weight

    def size(matrix: Tensor) -> float:
        squares = matrix.square().sum() if gram is None else ((matrix @ gram) * matrix).sum()
        return float(torch.clamp_min(squares, 0.0))

    whole = size(weight)
    return (size(difference) / whole) ** 0.5 if whole else 0.0

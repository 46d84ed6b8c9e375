"""Batch inference with one tersor file by many workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tersor import observe
from tersor.checkpoint import load
from tersor.scale.engines import map_over, require_ray

MakeModel = Callable[[], nn.Module]

_loaded: dict[tuple[str, int], nn.Module] = {}


@dataclass(frozen=True)
class _Part:
    path: str
    make: MakeModel | None
    inputs: Any


def predict(
    path: str | Path,
    batches: Iterable[Any],
    make: MakeModel | None = None,
    *,
    engine: str = "here",
    workers: int = 2,
) -> Iterator[Any]:
    """The model's outputs for batches, in their order; every worker loads the file once.

    Args:
        path: a tersor file that all workers can read.
        make: makes the float model, a module's own function; None where the file can build it.
        engine, workers: see :func:`tersor.scale.map_over`.

    Raises:
        CheckpointError: the file can't be loaded.
    """
    return map_over(_run, [_Part(str(path), make, inputs) for inputs in batches], engine=engine, workers=workers)


def _model(path: str, make: MakeModel | None) -> nn.Module:
    key = (path, Path(path).stat().st_mtime_ns)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = load(path, None if make is None else make())
    return _loaded[key]


def _run(part: _Part) -> Any:
    with torch.inference_mode():
        return observe.call(_model(part.path, part.make), part.inputs)


class _Actor:
    """What Ray Data keeps in a worker."""

    def __init__(self, path: str, make: MakeModel | None, column: str, output: str) -> None:
        torch.set_num_threads(1)
        self._model, self._column, self._output = _model(path, make), column, output

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        with torch.inference_mode():
            result = next(observe.floats(self._model(torch.tensor(batch[self._column]))))
        return {**batch, self._output: result.numpy()}


def predict_dataset(
    dataset: Any,
    path: str | Path,
    make: MakeModel | None = None,
    *,
    column: str = "x",
    output: str = "y",
    batch_size: int = 64,
    workers: int = 2,
) -> Any:
    """``ray.data.Dataset.map_batches`` over a dataset with a column of inputs; adds a column of outputs.

    Raises:
        TersorError: Ray is not installed.
    """
    ray = require_ray()
    return dataset.map_batches(
        _Actor,
        fn_constructor_args=(str(path), make, column, output),
        batch_size=batch_size,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
    )

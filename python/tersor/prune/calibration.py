"""Running a model over calibration data to gather what a criterion looks at. Hooks never outlive a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tersor import observe, processes
from tersor.errors import PruneError
from tersor.prune.criteria import Criterion, Statistics
from tersor.prune.layers import PrunableLayer

Loss = Callable[[nn.Module, Any], Tensor]
"""``loss(model, batch)``: a scalar, lower is better."""


@dataclass(frozen=True)
class Calibration:
    """The data a criterion needs.

    Args:
        batches: something that can be iterated again and again: a list, a DataLoader.
        loss: called with the model and a batch; None: the model itself is called on each batch (a tensor, a tuple or
            list of arguments, a mapping of keyword arguments).
        memory: bytes that the statistics of all layers may take at once. Where they would take more, layers are
            measured in several passes over the data.

    Raises:
        PruneError: ``batches`` is an iterator, which could be used only once.
    """

    batches: Iterable[Any]
    loss: Loss | None = None
    memory: int = 2**30

    def __post_init__(self) -> None:
        if isinstance(self.batches, Iterator):
            raise PruneError("calibration is an iterator, which can be used only once; give a list or a DataLoader")


def gather(
    model: nn.Module, layers: Iterable[PrunableLayer], criterion: Criterion, data: Calibration | None
) -> Iterator[list[tuple[PrunableLayer, Statistics]]]:
    """The layers with their statistics, in order, in portions whose statistics fit into ``data.memory``.

    The model runs in eval mode, with fixed random numbers; afterwards it is as before: no hooks, no gradients, the
    same buffers and training flags.

    Raises:
        PruneError: data or loss is missing, there is no batch, the model failed on one, a layer was never called or
            was given NaN or infinity.
    """
    layers = list(layers)
    if not layers:
        return
    if criterion.needs == "nothing":
        yield [(layer, criterion.statistics(layer)) for layer in layers]
        return
    if data is None:
        raise PruneError(f"the criterion {criterion.name!r} needs calibration data")
    if criterion.needs == "gradients" and data.loss is None:
        raise PruneError(f"the criterion {criterion.name!r} needs a loss(model, batch) beside the calibration data")
    for portion in _portions(layers, criterion, data.memory):
        found = {id(layer.module): (layer, criterion.statistics(layer)) for layer in portion}
        seen = _see_gradients(model, found, data) if criterion.needs == "gradients" else _see_inputs(model, found, data)
        for key, (layer, _) in found.items():
            if key not in seen:
                raise PruneError(f"{layer.name} was never used on the calibration data; exclude it")
        yield list(found.values())


def mean_loss(model: nn.Module, data: Calibration) -> float:
    """The mean of the loss over all batches, each counted once."""
    if data.loss is None:
        raise PruneError("a loss(model, batch) is needed beside the calibration data")
    total, count = 0.0, 0
    with observe.quiet(model):
        for batch in data.batches:
            count += 1
            total += float(data.loss(model, batch))
    _check_count(count)
    return total / count


_Found = dict[int, tuple[PrunableLayer, Statistics]]


def _portions(layers: list[PrunableLayer], criterion: Criterion, memory: int) -> Iterator[list[PrunableLayer]]:
    portion: list[PrunableLayer] = []
    used = 0
    for layer in layers:
        size = criterion.statistics_bytes(layer)
        if portion and used + size > memory:
            yield portion
            portion, used = [], 0
        portion.append(layer)
        used += size
    yield portion


def _see_inputs(model: nn.Module, found: _Found, data: Calibration) -> set[int]:
    seen: set[int] = set()

    def note(module: nn.Module, x: Tensor, _: Tensor) -> None:
        layer, statistics = found[id(module)]
        rows = layer.input_rows(x)
        if not bool(torch.isfinite(rows).all()):
            raise PruneError(f"{layer.name} was given NaN or infinity")
        if rows.numel():
            statistics.see_input(rows)
            seen.add(id(module))

    def run(index: int, batch: Any) -> None:
        with observe.quiet(model), _naming(index + 1):
            if data.loss is None:
                observe.call(model, batch)
            else:
                data.loss(model, batch)

    with observe.watching([layer.module for layer, _ in found.values()], note):
        _check_count(_share(found, data, run))
    return _join(found, seen)


def _share(found: _Found, data: Calibration, run: Callable[[int, Any], None]) -> int:
    """Run the batches: those of this process where the statistics divide, else all."""
    if _divides(found):
        return processes.share(data.batches, run, PruneError)
    count = 0
    for count, batch in enumerate(data.batches, 1):
        run(count - 1, batch)
    return count


def _join(found: _Found, seen: set[int]) -> set[int]:
    """The layers that were seen in any process, their statistics being those of all processes."""
    if processes.size() == 1 or not _divides(found):
        return seen
    order = list(found)
    everywhere = {index for part in processes.gather([order.index(key) for key in seen]) for index in part}
    for index in sorted(everywhere):
        found[order[index]][1].join(processes.total)
    return {order[index] for index in everywhere}


def _divides(found: _Found) -> bool:
    return all(statistics.divides for _, statistics in found.values())


def _see_gradients(model: nn.Module, found: _Found, data: Calibration) -> set[int]:
    assert data.loss is not None
    weights = {key: layer.weight for key, (layer, _) in found.items()}
    flags = [(weight, weight.requires_grad) for weight in weights.values()]
    seen: set[int] = set()
    nonzero = False

    def run(index: int, batch: Any) -> None:
        nonlocal nonzero
        assert data.loss is not None
        with observe.quiet(model), torch.enable_grad(), _naming(index + 1):
            loss = data.loss(model, batch)
            found_gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        gradients = cast("tuple[Tensor | None, ...]", found_gradients)
        for key, gradient in zip(weights, gradients, strict=True):
            layer, statistics = found[key]
            if gradient is None:
                continue
            seen.add(key)
            nonzero = nonzero or bool(gradient.any())
            matrix = layer.to_matrix(gradient.detach()).to(torch.float32)
            if not bool(torch.isfinite(matrix).all()):
                raise PruneError(f"the gradient of {layer.name} is NaN or infinite in calibration batch {index + 1}")
            statistics.see_gradient(matrix, layer.matrix())

    try:
        for weight, _ in flags:
            weight.requires_grad_(True)
        _check_count(_share(found, data, run))
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)
    everywhere = _join(found, seen)
    if everywhere and not any(processes.gather(nonzero)):
        raise PruneError("the loss has no gradient: it is zero for all weights on all calibration batches")
    return everywhere


class _naming:  # noqa: N801  (a context manager)
    """Turns the model's own exceptions into a PruneError that names the batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, PruneError):
            raise PruneError(
                f"the model or the loss failed on calibration batch {self.batch}: {type(error).__name__}: {error}"
            ) from error


def _check_count(count: int) -> None:
    if count == 0:
        raise PruneError("the calibration data held no batch")

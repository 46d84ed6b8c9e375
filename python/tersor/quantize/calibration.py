"""Running calibration data through a model to choose ranges for the inputs of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tersor import observe, processes
from tersor.errors import SwapError
from tersor.modules import linear_types
from tersor.progress import track
from tersor.quantize.batches import batch_size, limited
from tersor.quantize.observers import Granularity, Observer, make_observer, merged
from tersor.selection import matches


@dataclass(frozen=True)
class Calibrated:
    """What calibration data brought to the layers.

    Attributes:
        observers: by the name of the layer, all of which saw something.
        unreached: layers that the data never reached; they have no range and stay float.
        batches, samples: how many were used.
    """

    observers: dict[str, Observer]
    unreached: tuple[str, ...]
    batches: int
    samples: int


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    observer: str = "minmax",
    granularity: Granularity = "tensor",
    group_size: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    samples: int | None = None,
    progress: bool = True,
) -> Calibrated:
    """Observe the inputs of the linear and convolution layers of a model, which is left as it was.

    In a process group of torch.distributed each process runs its share of the batches, and all of them get the
    observers that one process would have: the same numbers exactly.

    Args:
        batches: anything that can be iterated over, such as a DataLoader; batches are used one by one and not kept.
        observer: a name in ``tersor.quantize.observers.OBSERVERS``.
        granularity, group_size: what has a range of its own, see Observer. Channels are the last dimension, as in
            linear layers; for convolutions use ``"tensor"``.
        include, exclude: shell wildcards on names.
        samples: stop after the batch with which this many examples were seen.
        progress: a progress bar on a terminal.

    Raises:
        ValueError: an unknown observer or granularity, or no layer is selected.
        SwapError: the model failed on a batch, there was none, or a layer was given NaN or infinity.
    """
    kinds: tuple[type[nn.Module], ...] = (*linear_types(), nn.Conv1d, nn.Conv2d)
    layers: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        and matches([name], exclude) is None
        and (not include or matches([name], include) is not None)
    }
    if not layers:
        raise ValueError("no linear or convolution layer is selected")
    observers = {name: make_observer(observer, granularity, group_size) for name in layers}
    names = {id(module): name for name, module in layers.items()}

    def note(layer: nn.Module, x: Tensor, _: Tensor) -> None:
        try:
            observers[names[id(layer)]].add(x)
        except ValueError as error:
            raise SwapError(f"{names[id(layer)]}, calibration batch {processes.batch_number()}: {error}") from error

    seen = 0

    def counted() -> Iterator[Any]:
        nonlocal seen
        for batch in track(limited(batches, samples), "calibrating", shown=progress):
            yield batch
            seen += batch_size(batch)

    with observe.watching(layers.values(), note):
        count = processes.share(counted(), lambda index, batch: observe.run(model, batch, f"calibration batch {index}"))
    if count == 0:
        raise SwapError("the calibration data held no batch; a generator can be used only once")
    observers = {name: merged(one) for name, one in observers.items()}
    reached = {name: found for name, found in observers.items() if found.units}
    return Calibrated(reached, tuple(name for name in layers if name not in reached), count, seen)

"""Energy in joules: of CPU packages by RAPL, which Linux shows in sysfs, and of a GPU by NVML (``nvidia-ml-py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path("/sys/class/powercap")

_Counter = tuple[Callable[[], int | None], int, float]
"""Reads a counter; where it wraps around, 0 for never; and its units in a joule."""


class EnergyMeter:
    """Sums the counters of the CPU packages, and of a GPU where one is given.

    Where a model runs on a GPU, energy without that of the GPU would be a lie: then it is not available without NVML,
    while packages whose counters can't be read are left out.

    Args:
        root: where the powercap tree is.
        gpu: the UUID of the GPU at work, as ``GPU-...``; None for none.

    Attributes:
        sources: what is summed, such as ``("package 0", "GPU")``; empty where the host has nothing or forbids it.
    """

    def __init__(self, root: Path = ROOT, gpu: str | None = None) -> None:
        packages = _packages(root)
        card = None if gpu is None else _nvml(gpu)
        if gpu is not None:
            packages = {name: counter for name, counter in packages.items() if counter[0]() is not None}
        found = packages if card is None else {**packages, "GPU": card}
        self._counters = list(found.values()) if gpu is None or card is not None else []
        self._last = self._read()
        self.sources = tuple(found) if self.available else ()

    @property
    def available(self) -> bool:
        """Whether joules can be told on this host."""
        return bool(self._counters) and self._last is not None

    def lap(self) -> float | None:
        """Joules since the last call (or since the start); None where they can't be told."""
        before, self._last = self._last, self._read()
        if not self._counters or before is None or self._last is None:
            return None
        total = 0.0
        for (_, limit, units), begin, end in zip(self._counters, before, self._last, strict=True):
            total += (end - begin if end >= begin else end - begin + limit) / units
        return total

    def _read(self) -> list[int] | None:
        values = [read() for read, _, _ in self._counters]
        found = [value for value in values if value is not None]
        return found if len(found) == len(values) else None


def gpu_of(*things: Any) -> str | None:
    """The UUID of the GPU that modules or (nested) tensors are on; None where all are on the CPU."""
    for tensor in _tensors(things):
        if tensor.device.type == "cuda" and torch.version.cuda is not None:
            return f"GPU-{torch.cuda.get_device_properties(tensor.device).uuid}"
    return None


def _tensors(things: Any) -> Iterable[Tensor]:
    if isinstance(things, Tensor):
        yield things
    elif isinstance(things, nn.Module):
        yield from things.parameters()
    elif isinstance(things, Mapping):
        yield from _tensors(list(things.values()))
    elif isinstance(things, list | tuple):
        for one in things:
            yield from _tensors(one)


def _packages(root: Path) -> dict[str, _Counter]:
    found: dict[str, _Counter] = {}
    for zone in sorted(root.glob("intel-rapl:*")):
        if zone.name.count(":") == 1 and (limit := _number(zone / "max_energy_range_uj")) is not None:
            found[f"package {zone.name.partition(':')[2]}"] = (_reader(zone / "energy_uj"), limit, 1e6)
    return found


def _reader(path: Path) -> Callable[[], int | None]:
    return lambda: _number(path)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _nvml(uuid: str) -> _Counter | None:
    """The counter of a GPU, in millijoules since its driver was loaded; GPUs have it from Volta on."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None

    def read() -> int | None:
        try:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except pynvml.NVMLError:
            return None

    return read, 0, 1e3

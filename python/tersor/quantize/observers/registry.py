"""What an observer is, and the list of all of them. A new one is one file here and one import line in the package."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor

from tersor import processes

Granularity = Literal["tensor", "channel", "token", "group"]


class Observer(abc.ABC):
    """Looks at inputs one after another and chooses a range to quantise them in, in memory that does not grow.

    Args:
        granularity: what has a range of its own: the ``"tensor"``; each ``"channel"`` (last dimension); each
            ``"group"`` of channels; each ``"token"``, a place in the last dimension but one, which may become more.
        group_size: channels in a group; they divide into groups of this size.

    Attributes:
        name: its name in the registry.
        keeps: it will be merged into another one, so it keeps what that needs. In a process group all do.

    Raises:
        ValueError: an unknown granularity, or a group size that is missing or out of place.
    """

    name: ClassVar[str] = ""

    def __init__(self, granularity: Granularity = "tensor", group_size: int | None = None) -> None:
        if granularity not in get_args(Granularity):
            raise ValueError(f"granularity: expected one of {', '.join(get_args(Granularity))}, got {granularity!r}")
        if (granularity == "group") != (group_size is not None) or (group_size is not None and group_size < 1):
            raise ValueError(f"group_size: a positive number with granularity 'group' only, got {group_size!r}")
        self.granularity, self.group_size = granularity, group_size
        self.units, self.keeps = 0, False

    def add(self, x: Tensor) -> None:
        """Takes an input ``[..., channels]`` of any floating dtype in; not of a batch that is not to be counted.

        Raises:
            ValueError: it holds NaN or infinity, or does not fit those before.
        """
        if x.numel() == 0 or processes.batch_number() is None:
            return
        rows = self._rows(x.detach().to(torch.float32))
        if not bool(torch.isfinite(rows).all()):
            raise ValueError("the input holds NaN or infinity")
        if self.units and self.granularity != "token" and len(rows) != self.units:
            raise ValueError(f"expected {self.units} ranges as before, got an input with {len(rows)}")
        self._make_room(len(rows))
        self._see(rows)

    def merge(self, others: Sequence[Any]) -> None:
        """Takes in what other observers of the same kind saw, as if this one had seen it after its own.

        Where the order counts, that is the order of the batches (:func:`tersor.processes.running`) over all of them.
        """
        for other in others:
            self._make_room(other.units)
            self._merge(other)

    def range(self, bits: int = 8) -> tuple[Tensor, Tensor]:
        """Low and high of each unit, float32 ``[units]``, ``low <= 0 <= high``.

        Args:
            bits: what the range will be divided into, for observers that weigh clipping against rounding.

        Raises:
            ValueError: nothing was observed.
        """
        if self.units == 0:
            raise ValueError("nothing was observed")
        low, high = self._choose(bits)
        return low.to(torch.float32).clamp_max(0), high.to(torch.float32).clamp_min(0)

    def quantization(self, bits: int = 8) -> tuple[Tensor, Tensor]:
        """Scale float32 and zero point int64, ``[units]`` each, that map the ranges to 0 .. 2^bits - 1, zero exactly.

        A unit that saw only zeros gets scale 1.
        """
        low, high = self.range(bits)
        return quantization(low, high, bits)

    def state_dict(self) -> dict[str, Any]:
        """What was seen: the number of units, and tensors by the names of attributes."""
        tensors = {name: value.clone() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return {"name": self.name, "units": self.units, "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what another observer of the kind saw.

        Raises:
            ValueError: it is the state of another kind of observer.
        """
        own = {name for name, value in vars(self).items() if isinstance(value, Tensor)}
        if state.get("name") != self.name or set(state["tensors"]) != own:
            raise ValueError(f"expected the state of the observer {self.name!r}, got that of {state.get('name')!r}")
        self.units = int(state["units"])
        for name, value in state["tensors"].items():
            setattr(self, name, value.clone())

    @property
    def state_bytes(self) -> int:
        """The memory of what was seen."""
        return sum(t.numel() * t.element_size() for t in vars(self).values() if isinstance(t, Tensor))

    @abc.abstractmethod
    def _grow(self, count: int) -> None:
        """Make room for further units, which saw nothing."""

    @abc.abstractmethod
    def _see(self, rows: Tensor) -> None:
        """Finite values of the first ``len(rows)`` units, float32 ``[rows, n]``."""

    @abc.abstractmethod
    def _merge(self, other: Any) -> None:
        """Take in what another one saw, in the first ``other.units`` units."""

    @abc.abstractmethod
    def _choose(self, bits: int) -> tuple[Tensor, Tensor]:
        """Low and high of each unit."""

    def _make_room(self, units: int) -> None:
        if units > self.units:
            self._grow(units - self.units)
            self.units = units

    def _rows(self, x: Tensor) -> Tensor:
        if self.granularity == "tensor":
            return x.reshape(1, -1)
        if self.granularity == "token":
            if x.dim() < 2:
                raise ValueError(f"granularity 'token' needs an input [..., tokens, channels], got {list(x.shape)}")
            return x.movedim(-2, 0).flatten(1)
        rows = x.reshape(-1, x.shape[-1])
        if self.granularity == "channel":
            return rows.t()
        assert self.group_size is not None
        if x.shape[-1] % self.group_size:
            raise ValueError(f"{x.shape[-1]} channels don't divide into groups of {self.group_size}")
        return rows.reshape(len(rows), -1, self.group_size).transpose(0, 1).flatten(1)


def quantization(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of ranges, see :meth:`Observer.quantization`."""
    most = 2**bits - 1
    scale = high / most - low / most
    scale = torch.where(scale > 0, scale.clamp_min(torch.finfo(torch.float32).tiny), torch.ones_like(scale))
    return scale, (-low / scale).round().clamp(0, most).to(torch.int64)


OBSERVERS: dict[str, type[Observer]] = {}
"""Every known observer by its name."""

ObserverT = TypeVar("ObserverT", bound=type[Observer])


def register_observer(cls: ObserverT) -> ObserverT:
    """Class decorator that makes an observer known by its name.

    Raises:
        ValueError: no name, or it belongs to another class.
    """
    if not cls.name:
        raise ValueError(f"{cls.__qualname__} has no name")
    owner = OBSERVERS.setdefault(cls.name, cls)
    if owner is not cls:
        raise ValueError(f"observer {cls.name!r} belongs to {owner.__module__}.{owner.__qualname__} already")
    return cls


def make_observer(observer: str, granularity: Granularity = "tensor", group_size: int | None = None) -> Observer:
    """An observer by its name.

    Raises:
        ValueError: an unknown name; the message lists what exists.
    """
    if observer not in OBSERVERS:
        raise ValueError(f"unknown observer {observer!r}; known: {', '.join(sorted(OBSERVERS))}")
    return OBSERVERS[observer](granularity, group_size)


def merged(observer: Observer) -> Observer:
    """An observer of everything that this one and those in its place in the other processes saw."""
    if processes.size() == 1:
        return observer
    whole = type(observer)(observer.granularity, observer.group_size)
    whole.merge(processes.gather(observer))
    return whole

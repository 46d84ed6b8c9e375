"""Running a model once to see which slices of its parameters are coupled.

Every dimension of every activation carries the numbers of the slices (``Indices``) that its entries come from. Each
aten operation has a rule that says how numbers pass through it and which become one class. So residual adds, splits,
concatenations, reshapes to heads and grouped convolutions need no patterns of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tersor import observe
from tersor.prune.structured.indices import Ids, Indices

FREE: Ids = np.zeros(0, dtype=np.int64)
"""The axis of a tensor that was broadcast from one entry: it goes with any."""

Axis = Ids | None
"""The numbers of an axis; None: nothing is known about it, or it has one entry."""

Axes = list[Axis]
Where = tuple[str, int]
"""A parameter or buffer by name, and one of its dimensions."""


@dataclass
class Product:
    """One operation that does the work of a model, for checks and for counting: each factor is a size or an axis."""

    name: str
    shapes: tuple[tuple[int | Ids, ...], ...]
    work: tuple[int | Ids, ...]


@dataclass
class Attribute:
    """An integer of a module that is the size of an axis, such as ``num_heads``."""

    module: str
    key: str
    axis: Ids


@dataclass
class Coupling:
    """What a run has shown.

    Attributes:
        indices: the classes.
        axes: the numbers of every dimension of every parameter and buffer of more than one slice.
        producers: the dimensions that make an activation's axis, and the module each is of.
        consumers: those that are summed over.
        heads: the axes that reshapes cut whole heads out of.
        attributes: the integers of modules that have to follow.
        products: the work, in order.
    """

    indices: Indices = field(default_factory=Indices)
    axes: dict[Where, Ids] = field(default_factory=dict)
    producers: dict[Where, str] = field(default_factory=dict)
    consumers: dict[Where, str] = field(default_factory=dict)
    heads: list[Ids] = field(default_factory=list)
    attributes: list[Attribute] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)


@dataclass
class Known:
    """What is known about a tensor, which is held so that its identity stays its own."""

    tensor: Tensor
    axes: Axes
    is_weight: bool = False


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Applies the rule of each operation to the numbers of its tensors. Use :func:`trace`."""

    def __init__(self, model: nn.Module, rules: Mapping[str, Callable[..., None]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.coupling = Coupling()
        self.ids = self.coupling.indices
        self.stack: list[tuple[str, nn.Module]] = []
        self.suspended = 0
        self._rules = rules
        self._known: dict[int, Known] = {}
        self._owners: list[Where] = []
        self._starts: list[int] = []
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and not nn.parameter.is_lazy(tensor):
                self._register(name, tensor)

    def _register(self, name: str, tensor: Tensor) -> None:
        axes: Axes = []
        for dim, size in enumerate(tensor.shape):
            axes.append(self.ids.fresh(size) if size > 1 else None)
            if size > 1:
                self._starts.append(int(axes[-1][0]))  # type: ignore[index]
                self._owners.append((name, dim))
                self.coupling.axes[name, dim] = axes[-1]  # type: ignore[assignment]
        self._known[id(tensor)] = Known(tensor, axes, is_weight=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.suspended:
            self.see(func, args, kwargs or {}, out)
        return out

    def see(self, func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> None:
        """Applies the rule of an operation; without one, everything that goes in has to stay."""
        name = func.name().split("::")[1].split(".")[0]
        rule = self._rules.get(name) or self._rules.get(name.rstrip("_"))
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = self._rules["pointwise"]
        if rule is None:
            self.pin_all(args, f"{name} in {self.where()} is not understood")
            return
        rule(self, args, kwargs, out)

    def where(self) -> str:
        """The module that is running."""
        return (self.stack[-1][0] if self.stack else "") or "the model"

    def axes(self, tensor: Tensor) -> Axes:
        """The axes of a tensor."""
        known = self._known.get(id(tensor))
        return list(known.axes) if known is not None else [None] * tensor.dim()

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether it is a parameter or a view of one."""
        known = self._known.get(id(tensor))
        return known is not None and known.is_weight

    def put(self, tensor: Tensor, axes: Iterable[Axis], *, is_weight: bool = False) -> None:
        """Notes the axes of a result."""
        found = [None if size == 1 else axis for size, axis in zip(tensor.shape, axes, strict=True)]
        self._known[id(tensor)] = Known(tensor, found, is_weight)

    def meet(self, *axes: Axis, what: str) -> Axis:
        """The axis that these become where they meet entry by entry; one that meets an unknown has to stay."""
        tracked = [axis for axis in axes if axis is not None and axis is not FREE]
        if not tracked:
            return FREE if axes and all(axis is FREE for axis in axes) else None
        for axis in tracked[1:]:
            self.ids.unite(tracked[0], axis)
        if any(axis is None for axis in axes):
            self.pin(tracked[0], f"{what} in {self.where()} meets something of fixed size")
        return tracked[0]

    def pin(self, axis: Axis, reason: str) -> None:
        """The slices of an axis have to stay."""
        if axis is not None and axis is not FREE:
            self.ids.pin(axis, reason)

    def pin_all(self, value: Any, reason: str) -> None:
        """So for all tensors in a nest of tuples, lists and mappings."""
        for tensor in observe_tensors(value):
            for axis in self.axes(tensor):
                self.pin(axis, reason)

    def owner(self, axis: Axis) -> Where | None:
        """The dimension of a parameter that an axis is."""
        if axis is None or axis is FREE:
            return None
        return self._owners[int(np.searchsorted(self._starts, axis[0], side="right")) - 1]

    def note_weight(self, produced: Axis, consumed: Axis) -> None:
        """A weight made one axis and summed over another."""
        if (where := self.owner(produced)) is not None:
            self.coupling.producers[where] = where[0].rpartition(".")[0]
        if (where := self.owner(consumed)) is not None:
            self.coupling.consumers[where] = where[0].rpartition(".")[0]

    def note_attribute(self, names: Iterable[str], size: int, axis: Ids, levels: int = 2) -> bool:
        """Looks for an integer of this name and size in the running module and those around it."""
        for module_name, module in reversed(self.stack[-levels:]):
            for key in names:
                value = module.__dict__.get(key)
                if type(value) is int and value == size:
                    self.coupling.attributes.append(Attribute(module_name, key, axis))
                    return True
        return False

    def values(self, names: Iterable[str], levels: int = 2) -> set[int]:
        """The integers of these names in the running module, those around it, and their ``config``."""
        owners = [module.__dict__ for _, module in self.stack[-levels:]]
        owners += [vars(owner["config"]) for owner in owners if hasattr(owner.get("config"), "__dict__")]
        found = {owner.get(key) for owner in owners for key in names}
        return {value for value in found if type(value) is int}

    def note_product(self, name: str, tensors: Iterable[Tensor], work: Iterable[tuple[int, Axis]]) -> None:
        """Notes the work of an operation: the product of its sizes, those of tracked axes as they will be."""
        shapes = tuple(self.sizes(tensor) for tensor in tensors)
        self.coupling.products.append(Product(name, shapes, tuple(_size(size, axis) for size, axis in work)))

    def sizes(self, tensor: Tensor) -> tuple[int | Ids, ...]:
        """The sizes of a tensor, those of tracked axes by their numbers."""
        return tuple(_size(size, axis) for size, axis in zip(tensor.shape, self.axes(tensor), strict=True))


def _size(size: int, axis: Axis) -> int | Ids:
    return size if axis is None or axis is FREE else axis


def observe_tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nest of tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from observe_tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from observe_tensors(item)


def trace(model: nn.Module, inputs: Any) -> Coupling:
    """Runs ``model`` once, in eval mode, and returns what is coupled. What it returns has to keep its size."""
    from tersor.prune.structured.leaves import LEAVES
    from tersor.prune.structured.rules import RULES

    tracer = Tracer(model, RULES)
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            leaf = LEAVES.get(type(module))
            _watch(stack, tracer, name, module, leaf)
        stack.enter_context(observe.quiet(model))
        with tracer:
            output = observe.call(model, inputs)
    tracer.pin_all(output, "it is what the model returns")
    return tracer.coupling


def _watch(
    stack: contextlib.ExitStack, tracer: Tracer, name: str, module: nn.Module, leaf: Callable[..., None] | None
) -> None:
    def enter(*_: Any) -> None:
        tracer.stack.append((name, module))
        tracer.suspended += leaf is not None

    def leave(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        tracer.suspended -= leaf is not None
        if leaf is not None and not tracer.suspended:
            leaf(tracer, name, module, (*args, *kwargs.values()), output)
        tracer.stack.pop()

    stack.callback(module.register_forward_pre_hook(enter).remove)
    stack.callback(module.register_forward_hook(leave, with_kwargs=True).remove)

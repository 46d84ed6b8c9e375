"""What inner layers return, by their names. Hooks are there only while the model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tersor import observe

Pick = Callable[[Any], Any]


@dataclass
class Taps:
    """Outputs of layers in the last run.

    Attributes:
        outputs: name -> what the layer returned; of its last call, where it was called several times.
    """

    outputs: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def tapped(model: nn.Module, names: Iterable[str], pick: Pick = lambda output: output) -> Iterator[Taps]:
    """Note what the layers of these names return while the block runs, in the order of their calls.

    Torch's fused attention path is off meanwhile, because it passes the layers by.
    """
    taps = Taps()
    fused = torch.backends.mha.get_fastpath_enabled()

    def hook(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            taps.outputs.pop(name, None)
            taps.outputs[name] = pick(output)

        return note

    with contextlib.ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
        torch.backends.mha.set_fastpath_enabled(False)
        for name in names:
            stack.callback(model.get_submodule(name).register_forward_hook(hook(name)).remove)
        yield taps


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode without gradients; its training flags are as before when the block ends."""
    flags = [module for module in model.modules() if module.training]
    try:
        for module in flags:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in flags:
            module.training = True


def trace(model: nn.Module, inputs: Any, pick: Pick) -> dict[str, tuple[int, ...]]:
    """Run a model once, leaving no trace, and tell the shape of every layer's feature, in the order of the calls."""

    def shape(output: Any) -> tuple[int, ...] | None:
        feature = pick(output)
        return None if feature is None else tuple(feature.shape)

    names = [name for name, _ in model.named_modules() if name]
    with tapped(model, names, shape) as taps:
        observe.run(model, inputs, "example_inputs")
    return {name: found for name, found in taps.outputs.items() if found is not None}


def show(shapes: Mapping[str, tuple[int, ...]], limit: int = 12) -> str:
    """``name [8, 64], ...`` for a message."""
    items = [f"{name} {list(shape)}" for name, shape in shapes.items()]
    rest = len(items) - limit
    return (", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")) or "none"

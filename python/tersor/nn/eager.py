"""The short way through a layer: past the torch op where nothing needs one.

`eager(op)(layer, x)` gives what the torch op gives for a PackedLinear, bit for bit, or None whenever the call is not
plain eager inference: another device or tensor class, gradients, forward-mode AD, functorch, a dispatch mode, a tracer,
a profiler, anything wrong. csrc/bindings/eager_linear.cc has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tersor._native import core


class EagerLinear(Protocol):
    """The short way of a kind of layer."""

    def __call__(self, layer: nn.Module, x: Tensor, /) -> Tensor | None:
        """The layer's output, or None where the torch op must be taken."""


def _probes() -> tuple[Callable[[], Any], ...] | None:
    """Functions that return something true while a dispatch mode, a tracer or a profiler is at work."""
    torch_c: Any = torch._C
    try:
        return torch_c._len_torch_dispatch_stack, torch_c._get_tracing_state, torch_c._autograd._profiler_enabled
    except AttributeError:
        return None


def never(*_: Any) -> None:
    return None


def _works() -> bool:
    probes, level = _probes(), getattr(forward_ad, "_current_level", None)
    if probes is None or not isinstance(level, int):
        return False
    return bool(core().eager_setup(Tensor, nn.Parameter, forward_ad, probes))


WORKS: Final = _works()
"""Whether this torch has what the short way needs."""


def eager(op: str) -> EagerLinear:
    """The short way to the torch op of this name; where there is none, a function that returns None."""
    short: EagerLinear = getattr(core(), f"eager_{op}", never) if WORKS else never
    return short

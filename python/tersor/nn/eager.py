"""The short way of few rows through a layer: past the torch op where nothing needs one.

`eager_linear(layer, x)` gives what LINEAR_S8 gives for an Int8Linear, bit for bit, or None whenever the call is not
plain eager inference: another device or tensor class, gradients, forward-mode AD, functorch, a dispatch mode, a tracer,
a profiler, large work, anything wrong. csrc/bindings/eager_linear.cc has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from tersor._native import core

EagerLinear = Callable[[nn.Module, Tensor], "Tensor | None"]


def _probes() -> tuple[Callable[[], Any], ...] | None:
    """Functions that return something true while a dispatch mode, a tracer or a profiler is at work."""
    torch_c: Any = torch._C
    try:
        return torch_c._len_torch_dispatch_stack, torch_c._get_tracing_state, torch_c._autograd._profiler_enabled
    except AttributeError:
        return None


def _never(*_: Any) -> None:
    return None


def _find() -> EagerLinear:
    native, probes = core(), _probes()
    level = getattr(forward_ad, "_current_level", None)
    if probes is None or not isinstance(level, int):
        return _never
    found = native.eager_setup(Tensor, nn.Parameter, forward_ad, probes)
    return native.eager_linear_s8 if found else _never


eager_linear: EagerLinear = _find()

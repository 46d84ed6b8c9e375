"""Flags of a model while it is trained, put back afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Training mode while the block runs; afterwards every module's flag is as before."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.train()
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def unfrozen(model: nn.Module) -> Iterator[None]:
    """Train all parameters of a model none of which requires a gradient, as those of a loaded model may be; where some
    do, they alone are trained. Afterwards the flags are as before and gradients are gone."""
    floating = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    switched = [] if any(parameter.requires_grad for parameter in floating) else floating
    try:
        for parameter in switched:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in switched:
            parameter.requires_grad_(False)
        for parameter in model.parameters():
            parameter.grad = None

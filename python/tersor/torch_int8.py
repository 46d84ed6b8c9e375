"""Torch's own dynamic int8, the rival that every torch user has."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def engines() -> list[str]:
    """The quantised engines of this torch build that run dynamic int8 linear layers on servers and desktops."""
    return [name for name in ("x86", "fbgemm", "onednn") if name in torch.backends.quantized.supported_engines]


def dynamic_int8(model: nn.Module, engine: str) -> nn.Module:
    """A copy of ``model`` whose linear layers run as torch's dynamic int8, packed for one of :func:`engines`."""
    with _engine(engine), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated, and it is what is there
        made: nn.Module = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)  # type: ignore[no-untyped-call]
    return made


@contextmanager
def _engine(name: str) -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before

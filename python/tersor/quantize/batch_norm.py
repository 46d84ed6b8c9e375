"""Batch norms whose statistics are those of the quantised layers before them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tersor import observe
from tersor.errors import SwapError
from tersor.progress import track
from tersor.quantize.batches import limited


def reestimate_batch_norm(
    model: nn.Module, batches: Iterable[Any], *, samples: int | None = None, progress: bool = True
) -> int:
    """Set the running mean and variance of every batch norm to those over some batches, in place.

    Nothing is trained: dropout is off, and each batch counts the same. It is for models whose layers were quantised or
    pruned and whose batch norms were not folded.

    Args:
        samples: stop after the batch with which this many examples were seen; some hundred are enough.

    Returns:
        The number of batch norms.

    Raises:
        SwapError: the model has no batch norm with statistics, or failed on a batch, or there was none.

    Source: Sun et al., Hybrid 8-bit floating point training and inference, NeurIPS 2019.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    if not norms:
        raise SwapError("the model has no batch norm with running statistics")
    count = 0
    with _only_these_train(model, norms), torch.no_grad():
        for batch in track(limited(batches, samples), "batch norms", shown=progress):
            try:
                observe.call(model, batch)
            except Exception as error:
                raise SwapError(f"the model failed on batch {count}: {type(error).__name__}: {error}") from error
            count += 1
    if count == 0:
        raise SwapError("the data held no batch; a generator can be used only once")
    return len(norms)


@contextmanager
def _only_these_train(model: nn.Module, norms: list[_BatchNorm]) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    momenta = [(norm, norm.momentum) for norm in norms]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    try:
        for module, _ in flags:
            module.training = False
        for norm in norms:
            norm.training, norm.momentum = True, None  # None: the plain average
            norm.reset_running_stats()
        yield
    except BaseException:
        for buffer, value in kept:
            buffer.copy_(value)
        raise
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
        for module, flag in flags:
            module.training = flag

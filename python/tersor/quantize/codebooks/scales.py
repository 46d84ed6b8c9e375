"""The scale of each row or group under which a given table fits the weights best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tersor.quantize.codebooks.codes import LIMIT, group_count, nearest

_BLOCK_ELEMENTS = 1 << 20
_FLOAT32 = torch.finfo(torch.float32)
_LARGEST = _FLOAT32.max / LIMIT / 2  # times any entry it is finite
REFITS = 2
"""Rounds of least squares after the search: the scale for the codes, then the codes for the scale."""


def grouped(tensor: Tensor, group_size: int) -> Tensor:
    """A matrix ``[out, in]`` as ``[out, groups, group_size]``, padded with zeros."""
    groups = group_count(tensor.shape[1], group_size)
    return functional.pad(tensor, (0, groups * group_size - tensor.shape[1])).reshape(len(tensor), groups, group_size)


def spread(importance: Tensor | None, shape: Sequence[int]) -> Tensor:
    """The importance of every weight, float32 ``[out, in]``: ones where none is given.

    Raises:
        ValueError: it is neither ``[in]`` nor ``[out, in]``, or holds a negative number, NaN or infinity.
    """
    if importance is None:
        return torch.ones(()).expand(*shape)
    if tuple(importance.shape) not in ((shape[1],), tuple(shape)):
        raise ValueError(f"importance: expected [{shape[1]}] or {list(shape)}, got {list(importance.shape)}")
    wide = importance.detach().to(torch.float32)
    if not bool((torch.isfinite(wide) & (wide >= 0)).all()):
        raise ValueError("importance: expected finite numbers, 0 or more")
    return wide.expand(*shape)


def safe_scale(scale: Tensor) -> Tensor:
    """Scales clamped to normal numbers whose products with a table are finite; 1 where a scale is 0."""
    return torch.where(scale > 0, scale.clamp(_FLOAT32.tiny, _LARGEST), torch.ones_like(scale))


def fit_scale(
    weight: Tensor, table: Tensor, group_size: int, ratios: Sequence[float], importance: Tensor | None = None
) -> Tensor:
    """The scale of each group with the least weighted squared error, float32 ``[out, groups]``.

    Tried are ``ratio * max|w| / max|table|`` for every ratio, then least squares around the best.

    Args:
        weight: float32 ``[out, in]``, finite.
        table: as in Codes.
        importance: what the squared error of a weight counts, ``[in]`` or ``[out, in]``.
    """
    counts = spread(importance, weight.shape)
    found = [
        _fit_block(weight[rows], _rows_of(table, rows), group_size, ratios, counts[rows]) for rows in _blocks(weight)
    ]
    return torch.cat(found) if found else torch.ones(0, group_count(weight.shape[1], group_size))


def _blocks(weight: Tensor) -> Iterator[slice]:
    rows = max(_BLOCK_ELEMENTS // max(weight.shape[1], 1), 1)
    for begin in range(0, len(weight), rows):
        yield slice(begin, begin + rows)


def _rows_of(table: Tensor, rows: slice) -> Tensor:
    return table if table.dim() == 1 else table[rows]


def _fit_block(weight: Tensor, table: Tensor, group_size: int, ratios: Sequence[float], counts: Tensor) -> Tensor:
    w, counts = grouped(weight, group_size), grouped(counts, group_size)  # [rows, groups, size]
    if table.dim() == 2:
        table = table[:, None].expand(-1, w.shape[1], -1)
    wide = table.to(torch.float32)
    first = safe_scale(w.abs().amax(2) / wide.abs().amax(-1).clamp_min(1))  # [rows, groups]
    best, least = first, torch.full_like(first, float("inf"))

    def consider(scale: Tensor, entry: Tensor) -> None:
        nonlocal best, least
        error = (w - entry * scale[..., None]).square_().mul_(counts).sum(2)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)

    for ratio in ratios:
        scale = safe_scale(first * ratio)
        consider(scale, _entries(w / scale[..., None], table, wide))
    for _ in range(REFITS):
        entry = _entries(w / best[..., None], table, wide)
        weighed = entry * counts
        scale = safe_scale((weighed * w).sum(2) / (weighed * entry).sum(2).clamp_min(_FLOAT32.tiny))
        consider(scale, _entries(w / scale[..., None], table, wide))
    return best


def _entries(units: Tensor, table: Tensor, wide: Tensor) -> Tensor:
    if table.dim() == 1:
        return wide[nearest(units, table).to(torch.int64)]
    return wide.gather(2, nearest(units, table).to(torch.int64))

"""Masks as models hand them to their blocks, and whether one only says which tokens are padding.

Reading a mask costs a comparison of all its rows, and every block of a forward is handed the same one. So the last
answer is kept for each thread: it counts where the mask is that very tensor and x is what the last block gave out, that
is within one forward. Nothing can have been written into the mask in between, by whatever means.
"""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor

ALL_KEPT = torch.empty(0, dtype=torch.bool)
"""Stands for a mask that keeps every token."""

NO_SCORES = torch.empty(0)

OUT_OF_REACH = -1e4
"""A score at or below it takes a key out, as models write it: -10000, the smallest float of a dtype, -inf."""


class _Last(threading.local):
    mask: weakref.ref[Tensor] | None = None
    score_bias: weakref.ref[Tensor] | None = None
    output: weakref.ref[Tensor] | None = None
    found: tuple[Tensor, Tensor] | None = None
    true_is_kept = True


_last = _Last()


def recognise(
    x: Tensor, mask: Tensor | None, score_bias: Tensor | None, true_is_kept: bool
) -> tuple[Tensor, Tensor] | None:
    """keep bool [batch, tokens] and score_bias float32 [heads, tokens, tokens], empty for none, or None.

    None: the mask is about more than padding, or the scores differ within the batch.

    Args:
        x: [batch, tokens, hidden], the input of the block.
        mask: as the block was given it.
        score_bias: [batch or 1, heads, tokens, tokens], added to the scores of attention.
        true_is_kept: what True means in a mask of bool.
    """
    if mask is None and score_bias is None:
        _last.found = None
        return ALL_KEPT, NO_SCORES
    last = _last
    if (
        last.found is not None
        and last.true_is_kept is true_is_kept
        and last.output is not None
        and last.output() is x
        and _same(last.mask, mask)
        and _same(last.score_bias, score_bias)
    ):
        return last.found
    keep, scores = key_padding(mask, x.shape[0], x.shape[1], true_is_kept), shared_scores(score_bias, x.shape[1])
    last.found = None if keep is None or scores is None else (keep, scores)
    last.mask = None if mask is None else weakref.ref(mask)
    last.score_bias = None if score_bias is None else weakref.ref(score_bias)
    last.true_is_kept = true_is_kept
    return last.found


def note_output(y: Tensor) -> None:
    """Remember what a block gave out: the block that is given it is part of the same forward."""
    if _last.found is not None:
        _last.output = weakref.ref(y)


def _same(reference: weakref.ref[Tensor] | None, tensor: Tensor | None) -> bool:
    return tensor is None if reference is None else reference() is tensor


def key_padding(mask: Tensor | None, batch: int, tokens: int, true_is_kept: bool) -> Tensor | None:
    """keep bool [batch, tokens] where `mask` says no more than that, ALL_KEPT where it keeps all, else None.

    Known are [batch, tokens] and [batch, any, any, tokens], the same for every head and query: bool, or float, where 0
    keeps and a very negative number does not; and integers 1 and 0 [batch, tokens].
    """
    if mask is None:
        return ALL_KEPT
    if not isinstance(mask, Tensor) or mask.layout != torch.strided or mask.is_nested or mask.device.type != "cpu":
        return None
    if mask.dim() not in (2, 4) or mask.shape[0] not in (1, batch) or mask.shape[-1] != tokens:
        return None
    first = mask
    if mask.dim() == 4:
        first = mask[:, :1, :1]
        if not torch.equal(first.expand_as(mask), mask):
            return None
        first = first[:, 0, 0]
    keep = _kept(first.detach(), true_is_kept)
    if keep is None:
        return None
    return ALL_KEPT if bool(keep.all()) else keep.expand(batch, tokens).contiguous()


def _kept(row: Tensor, true_is_kept: bool) -> Tensor | None:
    """bool [batch or 1, tokens] of the row that all queries share, or None."""
    if row.dtype == torch.bool:
        return row if true_is_kept else ~row
    if row.is_floating_point():
        keep = row == 0
        return keep if bool((keep | (row <= OUT_OF_REACH)).all()) else None
    if row.dtype in (torch.int64, torch.int32, torch.uint8) and true_is_kept:
        return row == 1 if bool(((row == 0) | (row == 1)).all()) else None
    return None


def shared_scores(score_bias: Tensor | None, tokens: int) -> Tensor | None:
    """score_bias [batch or 1, heads, tokens, tokens] as float32 [heads, tokens, tokens] where the batch shares it."""
    if score_bias is None:
        return NO_SCORES
    if score_bias.dim() != 4 or tuple(score_bias.shape[2:]) != (tokens, tokens) or not score_bias.is_floating_point():
        return None
    first = score_bias[:1]
    if score_bias.shape[0] != 1 and not torch.equal(first.expand_as(score_bias), score_bias):
        return None
    return first[0].float().contiguous()

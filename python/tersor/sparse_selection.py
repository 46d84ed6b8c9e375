"""Deciding, for each layer of a pruned model, whether it becomes sparse, dense int8 or stays float."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tersor.nn import SparseInt8Linear, SparseLinear
from tersor.nn.float_linear import weight_matrix
from tersor.progress import track
from tersor.selection import Choice, open_choices
from tersor.tune_sparse import SparseTuner

_NOTHING_TO_DO = "it was not pruned, and the recipe does not quantise"


def judge_pruned(choices: Sequence[Choice], pattern: str, *, quantised: bool, force: bool, progress: bool) -> None:
    """Note the zeros of every open choice, and measure which layer is fastest for it; or force the sparse one."""
    pending = open_choices(choices)
    tuner = None if force else SparseTuner()
    for choice in track(pending, "measuring layers", shown=progress and not force):
        weight = weight_matrix(choice.candidate.module)
        zeros = 1 - int(torch.count_nonzero(weight)) / weight.numel()
        choice.sparsity, choice.pattern = zeros, pattern
        against = (SparseInt8Linear if quantised else SparseLinear).reason_against(choice.candidate.module)
        sparse = zeros > 0 and against is None
        if zeros == 0:
            choice.sparsity = choice.pattern = None
        if not sparse and not quantised:
            choice.reason = against or _NOTHING_TO_DO
            continue
        choice.remark = against if zeros > 0 else None
        choice.kind = "int8" if not sparse else "sparse_int8" if quantised else "sparse"
        choice.forced = tuner is None
        if tuner is not None:
            _measure(tuner, choice, sparse, quantised)


def _measure(tuner: SparseTuner, choice: Choice, sparse: bool, quantised: bool) -> None:
    module = choice.candidate.module
    try:
        if not sparse:
            choice.verdict = tuner.judge(module, choice.rows, choice.dtype)
        else:
            assert choice.pattern is not None
            found = tuner.judge_sparse(module, choice.rows, choice.dtype, choice.pattern, quantised)
            choice.verdict, choice.remark = found.verdict, found.remark
            choice.kind = "int8" if found.layer == "int8" else choice.kind
    except ValueError as error:
        choice.reason = f"can't be converted: {error}"
        return
    if not choice.verdict.faster:
        choice.reason = choice.verdict.reason

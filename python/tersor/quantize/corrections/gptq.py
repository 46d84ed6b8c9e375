"""Second order: what one weight loses by rounding, the others make up for."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from tersor.quantize.codebooks import Codes, decode
from tersor.quantize.codebooks.codes import nearest
from tersor.quantize.corrections.registry import Correction, LayerProblem, Solution, register_correction
from tersor.second_order import inverse_factor

BLOCK = 128


@register_correction
class GPTQ(Correction):
    """Rounds a weight column by column and spreads each column's error over those that are left.

    With ``H = X X^T + damping * mean(diag) * I`` and ``U`` the upper Cholesky factor of its inverse, the error
    ``(w_j - code_j) / U_jj`` of column ``j`` is spread with row ``j`` of ``U``. Columns with large inputs go first.
    Tables and scales stay as they are, so any code book and group size will do.

    Source: Frantar et al., GPTQ, 2022 (arXiv 2210.17323), algorithm 1, with the order of activations.
    """

    name: ClassVar[str] = "gptq"
    stage: ClassVar = "weights"

    def __init__(self, damping: float = 0.01) -> None:
        self.damping = damping

    def apply(self, problem: LayerProblem, solution: Solution) -> Solution:
        weight, gram = problem.scaled(solution.input_scale)
        order = gram.diagonal().argsort(descending=True)
        factor = inverse_factor(gram[order][:, order], self.damping)
        return replace(solution, codes=round_columns(weight, solution.codes, order, factor))


def round_columns(weight: Tensor, codes: Codes, order: Tensor, factor: Tensor) -> Codes:
    """New codes for a weight ``[out, in]`` under the table and scales of ``codes``.

    Args:
        order: the columns, int64 ``[in]``.
        factor: upper Cholesky factor of the inverse second moments, ``[in, in]``, in this order.
    """
    left = weight[:, order].clone()
    found = torch.empty_like(codes.codes)
    for begin in range(0, left.shape[1], BLOCK):
        end = min(begin + BLOCK, left.shape[1])
        errors = torch.zeros_like(left[:, begin:end])
        for j in range(begin, end):
            column = int(order[j])
            code, value = _round(left[:, j], codes, column // codes.group_size)
            found[:, column] = code
            error = (left[:, j] - value) / factor[j, j]
            left[:, j:end] -= error[:, None] * factor[j, j:end]
            errors[:, j - begin] = error
        left[:, end:] -= errors @ factor[begin:end, end:]
    return replace(codes, codes=found)


def _round(column: Tensor, codes: Codes, group: int) -> tuple[Tensor, Tensor]:
    """The code and the value nearest to each weight of a column ``[out]``."""
    table, scale = codes.table, codes.scale[:, group]
    table = table[:, group] if table.dim() == 3 else table
    code = nearest((column / scale)[:, None], table)
    single = Codes(code, table, scale[:, None], codes.bits, 1)
    return code[:, 0], decode(single)[:, 0]

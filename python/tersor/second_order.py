"""Second moments of a layer's inputs, factorised: what removing or rounding one weight means for the others."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_factor(moments: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of ``(moments + damping * mean(diagonal) * I)^-1``, float32 ``[in, in]``.

    Inputs that are always zero count as independent. The damping is raised tenfold as long as there is no factor.

    Args:
        moments: the mean or sum of ``x x^T``, ``[in, in]``.

    Raises:
        ValueError: it holds NaN or infinity, or no damping helps.

    Memory: three matrices of float64 while it works.
    """
    wide = moments.to(torch.float64, copy=True)
    diagonal = wide.diagonal()
    mean = float(diagonal.mean())
    if not 0 <= mean < float("inf"):
        raise ValueError("its inputs hold NaN or infinity")
    diagonal[diagonal == 0] = mean or 1.0
    added = 0.0
    while damping < 1e6:
        diagonal += (damping - added) * (mean or 1.0)
        lower, failed = torch.linalg.cholesky_ex(wide)
        if not bool(failed):
            inverse = torch.cholesky_inverse(lower)
            del lower
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not bool(failed):
                return torch.as_tensor(upper, dtype=torch.float32)
        damping, added = 10 * damping, damping
    raise ValueError("the second moments of its inputs can't be factorised")

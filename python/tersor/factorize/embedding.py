"""An embedding as a smaller one and a linear layer."""

from __future__ import annotations

import torch
from torch import nn

from tersor.factorize.rank import RankRule, break_even, lost_error


def embedding_reason_against(module: nn.Module) -> str | None:
    """Why an embedding can't become a smaller one with a linear layer, or None when it can."""
    if type(module) is not nn.Embedding:
        return f"{type(module).__name__} is not an nn.Embedding"
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return "it has max_norm, scale_grad_by_freq or sparse gradients"
    if not bool(torch.isfinite(module.weight).all()):
        return "its weight holds NaN or infinity"
    return None


def factorize_embedding(module: nn.Embedding, rule: RankRule) -> tuple[nn.Sequential | None, int, float, str]:
    """nn.Embedding(count, rank) and nn.Linear(rank, width) whose product is near the table, by SVD.

    A padding row that is zero stays zero. Returns what factorize_linear returns.

    Raises:
        ValueError: see :func:`embedding_reason_against`.
    """
    reason = embedding_reason_against(module)
    if reason is not None:
        raise ValueError(reason)
    table = module.weight.detach().double()  # [count, width]
    count, width = table.shape
    # From the eigenvectors of the small side: the table may have very many rows.
    values, vectors = torch.linalg.eigh(table.T @ table)
    s = values.flip(0).clamp_min(0).sqrt()[: min(count, width)]
    rank = rule.choose(s, count + width, count * width)
    error = lost_error(s, rank)
    if rank > break_even(count, width):
        return (
            None,
            rank,
            error,
            f"rank {rank} needs more weights than the table; {break_even(count, width)} at most pay",
        )
    basis = vectors.flip(1)[:, :rank]  # [width, rank], orthonormal
    small = nn.Embedding(count, rank, padding_idx=module.padding_idx, device="meta")
    small.weight = nn.Parameter((table @ basis).to(module.weight.dtype))
    linear = nn.Linear(rank, width, bias=False, device="meta")
    linear.weight = nn.Parameter(basis.to(module.weight.dtype).contiguous())
    return nn.Sequential(small, linear).train(module.training), rank, error, ""

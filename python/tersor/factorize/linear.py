"""A linear layer as two thin ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tersor.factorize.factored_linear import FactoredLinear
from tersor.factorize.rank import RankRule, break_even, lost_error
from tersor.factorize.svd import decompose


@dataclass(frozen=True)
class Inputs:
    """What a layer is given: the mean of x x^T ``[k, k]`` and of x ``[k]``."""

    gram: Tensor
    mean: Tensor


def factorize_linear(
    module: nn.Linear, rule: RankRule, inputs: Inputs | None = None
) -> tuple[FactoredLinear | None, int, float, str]:
    """Factors of an nn.Linear by SVD, weighted by its inputs where they are given.

    With inputs and a bias, the weight is cut for the inputs less their mean, and the mean of what that changes goes
    into the bias: the least error that an affine layer of the rank can have on them.

    Returns:
        The new layer, or None with a reason; its rank; the relative error of the cut (of the outputs where inputs are
        given); the reason.
    """
    weight = module.weight.detach()
    n, k = weight.shape
    covariance, centred = None, False
    if inputs is not None:
        centred = module.bias is not None
        mean = inputs.mean.double()
        covariance = inputs.gram.double() - (torch.outer(mean, mean) if centred else 0)
    u, s, vt = decompose(weight, covariance)
    rank = rule.choose(s, n + k, n * k)
    error = lost_error(s, rank)
    if rank > break_even(n, k):
        return None, rank, error, f"rank {rank} needs more weights than the layer; {break_even(n, k)} at most pay"
    root = s[:rank].sqrt()
    down, up = root[:, None] * vt[:rank], u[:, :rank] * root
    bias = None if module.bias is None else module.bias.detach()
    if centred and bias is not None and inputs is not None:
        moved = (weight.double() - up @ down) @ inputs.mean.double()
        bias = (bias.double() + moved).to(bias.dtype)
    new = FactoredLinear.from_factors(down.to(weight.dtype), up.to(weight.dtype), bias)
    return new.train(module.training), rank, error, ""

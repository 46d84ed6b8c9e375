"""Fitting a convolution to given outputs by least squares, from sums over batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tersor.prune.layers import PrunableLayer

ROWS = 16_384
"""Places of one batch that a fit looks at."""

RIDGE = 1e-7
"""Times the mean of the diagonal: keeps the equations solvable where inputs depend on each other."""


class Moments:
    """The normal equations of ``y = w x + b`` for the places of a convolution, each group by itself.

    Args:
        layer: an nn.Conv2d; only its shape counts.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        self.view = PrunableLayer("", layer)
        groups, inner = layer.groups, self.view.shape[1]
        outputs = layer.out_channels // groups
        self.inputs = torch.zeros(groups, inner + 1, inner + 1, dtype=torch.float64)
        self.products = torch.zeros(groups, inner + 1, outputs, dtype=torch.float64)
        self._random = torch.Generator().manual_seed(0)

    def add(self, x: Tensor, y: Tensor) -> None:
        """x [n, in, h, w], y [n, out, h', w']: places drawn at random, the same in all groups."""
        images = max(1, 2 * ROWS // y[0, 0].numel())
        if len(x) > images:
            chosen = torch.randperm(len(x), generator=self._random)[:images]
            x, y = x[chosen], y[chosen]
        rows = self.view.input_rows(x)  # [groups, places, inner]
        groups, places, _ = rows.shape
        wanted = y.detach().permute(0, 2, 3, 1).reshape(places, groups, -1).permute(1, 0, 2)  # [groups, places, out]
        if places > ROWS:
            chosen = torch.randperm(places, generator=self._random)[:ROWS]
            rows, wanted = rows[:, chosen], wanted[:, chosen]
        one = torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1).double()
        self.inputs += one.transpose(1, 2) @ one
        self.products += one.transpose(1, 2) @ wanted.double()

    def solve(self) -> tuple[Tensor, Tensor]:
        """The weight in the layer's shape and the bias [out], in double precision."""
        inner = self.inputs.shape[1] - 1
        ridge = RIDGE * self.inputs.diagonal(dim1=1, dim2=2)[:, :inner].mean(1).clamp_min(1e-300)
        damped = self.inputs.clone()
        damped.diagonal(dim1=1, dim2=2)[:, :inner] += ridge[:, None]
        factor, failed = torch.linalg.cholesky_ex(damped)
        if bool(failed.any()):
            solution = torch.linalg.lstsq(damped, self.products, driver="gelsd").solution  # [groups, inner + 1, out]
        else:
            solution = torch.cholesky_solve(self.products, factor)
        weight = solution[:, :inner].transpose(1, 2).reshape(self.view.weight.shape)
        return weight, solution[:, inner].reshape(-1)

    def covariance(self) -> Tensor:
        """The second moments of the inputs of each group, [groups, inner, inner]."""
        return self.inputs[:, :-1, :-1] / self.inputs[:, -1:, -1:].clamp_min(1)


@torch.no_grad()
def fill(layer: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Gives a convolution weights, cast to its dtype."""
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    if bias is not None:
        layer.bias.copy_(bias)

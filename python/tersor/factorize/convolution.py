"""Convolutions as chains of thinner ones.

``tucker2``: 1x1, k x k, 1x1 (Kim et al., Compression of Deep Convolutional Neural Networks, ICLR 2016), by higher-order
orthogonal iteration (De Lathauwer et al., 2000). ``cp``: 1x1, depthwise k x k, 1x1 (Lebedev et al., Speeding-up
Convolutional Neural Networks Using Fine-tuned CP-Decomposition, ICLR 2015, with the two spatial modes as one), by
alternating least squares. ``spatial``: k x 1, 1 x k (Jaderberg et al., Speeding up Convolutional Neural Networks with
Low Rank Expansions, BMVC 2014), by SVD. A 1x1 convolution is a matrix and is cut by SVD in every one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tersor.factorize.rank import RankRule, lost_error, spectrum

Made = tuple[nn.Sequential | None, int, float, str]
"""The chain or None, its (smaller) rank, the relative error of its weight, and why there is no chain."""

_TUCKER_SWEEPS = 3
_CP_SWEEPS = 60
_CP_RIDGE = 1e-7


def conv_reason_against(module: nn.Module) -> str | None:
    """Why a convolution can't become a chain, or None when it can."""
    if type(module) is not nn.Conv2d:
        return f"{type(module).__name__} is not an nn.Conv2d"
    if module.groups != 1:
        return "it is grouped or depthwise"
    if "weight" not in module._parameters or not bool(torch.isfinite(module.weight).all()):
        return "its weight is computed by a hook, or holds NaN or infinity"
    return None


def factorize_convolution(module: nn.Conv2d, method: str, rule: RankRule) -> Made:
    """A chain of convolutions near ``module``: a method of ``CONV_METHODS``, or SVD where its kernel is 1x1.

    Raises:
        ValueError: see :func:`conv_reason_against`; an unknown method.
    """
    reason = conv_reason_against(module)
    if reason is not None:
        raise ValueError(reason)
    if method not in CONV_METHODS:
        raise ValueError(f"unknown method {method!r} for convolutions; known: {', '.join(CONV_METHODS)}")
    size = module.kernel_size
    made = _pointwise(module, rule) if size == (1, 1) else CONV_METHODS[method](module, rule)
    chain, rank, error, reason = made
    if chain is None:
        return made
    before, after = (sum(p.numel() for p in part.parameters()) for part in (module, chain))
    if after >= before:
        return None, rank, error, f"rank {rank} needs {after} weights, the layer has {before}"
    return chain.train(module.training), rank, error, ""


def _conv(
    weight: Tensor, like: nn.Conv2d, spatial: tuple[bool, bool], bias: Tensor | None = None, groups: int = 1
) -> nn.Conv2d:
    """A convolution with this weight; stride, padding and dilation of ``like`` along the spatial axes that it has."""
    out, inner, *size = weight.shape
    settings: dict[str, Any] = {}
    for name, plain in (("stride", 1), ("dilation", 1), ("padding", 0)):
        values = getattr(like, name)
        if isinstance(values, str):
            settings[name] = values if any(spatial) else 0
        else:
            settings[name] = tuple(v if used else plain for v, used in zip(values, spatial, strict=True))
    made = nn.Conv2d(
        inner * groups,
        out,
        tuple(size),  # type: ignore[arg-type]
        groups=groups,
        bias=bias is not None,
        padding_mode=like.padding_mode,
        device="meta",
        **settings,
    )
    made.weight = nn.Parameter(weight.to(like.weight.dtype).contiguous())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    return made


def _bias(module: nn.Conv2d) -> Tensor | None:
    return None if module.bias is None else module.bias.detach()


def _svd(matrix: Tensor, rule: RankRule, per_rank: float, parameters: int) -> tuple[Tensor, Tensor, int, float]:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    rank = rule.choose(s, per_rank, parameters)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank], rank, lost_error(s, rank)


def _pointwise(module: nn.Conv2d, rule: RankRule) -> Made:
    weight = module.weight.detach().double()[:, :, 0, 0]  # [O, I]
    up, down, rank, error = _svd(weight, rule, sum(weight.shape), weight.numel())
    first = _conv(down[:, :, None, None], module, (True, True))  # takes the stride: fewer pixels for the second
    return nn.Sequential(first, _conv(up[:, :, None, None], module, (False, False), _bias(module))), rank, error, ""


def _spatial(module: nn.Conv2d, rule: RankRule) -> Made:
    weight = module.weight.detach().double()  # [O, I, h, w]
    out, inner, high, wide = weight.shape
    matrix = weight.permute(1, 2, 0, 3).reshape(inner * high, out * wide)
    left, right, rank, error = _svd(matrix, rule, sum(matrix.shape), weight.numel())
    column = left.reshape(inner, high, rank).permute(2, 0, 1)[..., None]  # [r, I, h, 1]
    row = right.reshape(rank, out, wide).permute(1, 0, 2)[:, :, None]  # [O, r, 1, w]
    chain = nn.Sequential(_conv(column, module, (True, False)), _conv(row, module, (False, True), _bias(module)))
    return chain, rank, error, ""


def _tucker2(module: nn.Conv2d, rule: RankRule) -> Made:
    weight = module.weight.detach().double()  # [O, I, h, w]
    ranks = _tucker_ranks(weight, rule)
    u_out = torch.linalg.svd(weight.flatten(1), full_matrices=False)[0][:, : ranks[0]]
    u_in = _leading(weight.transpose(0, 1).flatten(1), ranks[1])
    for _ in range(_TUCKER_SWEEPS):
        u_out = _leading(torch.einsum("oihw,ir->orhw", weight, u_in).flatten(1), ranks[0])
        u_in = _leading(torch.einsum("oihw,or->irhw", weight, u_out).flatten(1), ranks[1])
    core = torch.einsum("oihw,or,is->rshw", weight, u_out, u_in)
    error = math.sqrt(max(1 - float(core.square().sum() / weight.square().sum().clamp_min(1e-300)), 0.0))
    chain = nn.Sequential(
        _conv(u_in.T[:, :, None, None], module, (False, False)),
        _conv(core, module, (True, True)),
        _conv(u_out[:, :, None, None], module, (False, False), _bias(module)),
    )
    return chain, min(ranks), error, ""


def _leading(matrix: Tensor, rank: int) -> Tensor:
    left: Tensor = torch.linalg.svd(matrix, full_matrices=False)[0]
    return left[:, :rank]


def _tucker_ranks(weight: Tensor, rule: RankRule) -> tuple[int, int]:
    """Ranks of the outputs and of the inputs: each by its own singular values, or the same part of both."""
    out, inner, high, wide = weight.shape
    if rule.kind in ("energy", "error"):
        # Each of the two cuts may lose half of what is allowed in all.
        lost = rule.value**2 if rule.kind == "error" else 1 - rule.value
        half = RankRule("energy", 1 - lost / 2, rule.round_to)
        return (
            half.choose(spectrum(weight.flatten(1)), 1, 1),
            half.choose(spectrum(weight.transpose(0, 1).flatten(1)), 1, 1),
        )
    if rule.kind == "rank":
        rank = rule.choose(torch.ones(min(out, inner)), 1, 1)
        return min(rank, out), min(rank, inner)
    # p of both: p^2 area out inner + p (out^2 + inner^2) = ratio * area out inner
    area = high * wide * out * inner
    linear = out**2 + inner**2
    part = (math.sqrt(linear**2 + 4 * area * rule.value * area) - linear) / (2 * area)
    step = rule.round_to

    def rounded(extent: int) -> int:
        return max(1, min(extent, max(int(part * extent) // step, 1) * step))

    return rounded(out), rounded(inner)


def _cp(module: nn.Conv2d, rule: RankRule) -> Made:
    weight = module.weight.detach().double()
    out, inner, high, wide = weight.shape
    tensor = weight.flatten(2)  # [O, I, S]
    per_rank = out + inner + high * wide
    if rule.kind in ("rank", "ratio"):
        most = min(out * inner, out * high * wide, inner * high * wide)
        rank = rule.choose(torch.ones(most), per_rank, weight.numel())
        factors, error = _als(tensor, rank)
    else:
        wanted = rule.value if rule.kind == "error" else math.sqrt(1 - rule.value)
        limit = weight.numel() // per_rank
        rank = rule.round_to
        factors, error = _als(tensor, min(rank, limit))
        while error > wanted and rank + rule.round_to <= limit:
            rank += rule.round_to
            factors, error = _als(tensor, rank)
        if error > wanted:
            return None, rank, error, f"no rank with fewer weights than the layer has an error of {wanted:.3g}"
    a, b, c = factors  # [O, r], [I, r], [S, r]
    chain = nn.Sequential(
        _conv(b.T[:, :, None, None], module, (False, False)),
        _conv(c.T.reshape(-1, 1, high, wide), module, (True, True), groups=c.shape[1]),
        _conv(a[:, :, None, None], module, (False, False), _bias(module)),
    )
    return chain, a.shape[1], error, ""


def _als(tensor: Tensor, rank: int) -> tuple[list[Tensor], float]:
    """CP factors of a 3-way tensor by alternating least squares from leading singular vectors, and their error."""
    generator = torch.Generator().manual_seed(0)
    factors = []
    for mode in range(3):
        vectors = _leading(tensor.movedim(mode, 0).flatten(1), rank)
        extra = torch.randn(len(vectors), rank - vectors.shape[1], generator=generator, dtype=torch.float64)
        factors.append(torch.cat([vectors, extra / math.sqrt(len(vectors))], 1))
    total = float(tensor.square().sum())
    for _ in range(_CP_SWEEPS):
        for mode in range(3):
            one, two = (factors[i] for i in range(3) if i != mode)
            products = torch.einsum("nab,ar,br->nr", tensor.movedim(mode, 0), one, two)
            gram = (one.T @ one) * (two.T @ two)
            ridge = _CP_RIDGE * float(gram.diagonal().mean().clamp_min(1e-30))
            gram = gram + ridge * torch.eye(rank, dtype=torch.float64)
            factors[mode] = torch.linalg.solve(gram, products.T).T
        for mode in (0, 1):  # all scale in the last factor, so that none runs away
            norms = factors[mode].norm(dim=0).clamp_min(1e-30)
            factors[mode] = factors[mode] / norms
            factors[2] = factors[2] * norms
    rest = tensor - torch.einsum("ar,br,cr->abc", *factors)
    shares = factors[2].norm(dim=0).clamp_min(1e-30).pow(1 / 3)
    factors[0], factors[1] = factors[0] * shares, factors[1] * shares
    factors[2] = factors[2] / shares.square()
    return factors, math.sqrt(float(rest.square().sum()) / total) if total > 0 else 0.0


CONV_METHODS: Mapping[str, Callable[[nn.Conv2d, RankRule], Made]] = {
    "tucker2": _tucker2,
    "cp": _cp,
    "spatial": _spatial,
}

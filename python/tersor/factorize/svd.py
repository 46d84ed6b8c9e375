"""Truncated SVD of a weight, plain or weighted by what the layer sees.

Plain: the factors of rank r nearest to W in the Frobenius norm (Eckart and Young, 1936). Weighted: the factors that
change the outputs least, in the mean square over calibration inputs. With the covariance S = L L^T of the inputs,
E |W x - W' x|^2 = |(W - W') L|^2, so W L is cut and L taken out again (Wang et al., SVD-LLM, 2024, arXiv 2403.07378;
Chen et al., DRONE, 2021). Here L is the symmetric root of S, to whose eigenvalues a thousandth of their mean is added:
directions that no input has are then left to the plain SVD, and the factors stay small enough to be rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DAMPING = 1e-3
"""What is added to the eigenvalues of the covariance, in units of their mean."""


def truncated_svd(weight: Tensor, rank: int, covariance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """down float32 [rank, k] and up float32 [n, rank] with up @ down near weight [n, k].

    The singular values are shared evenly: both factors have the scales sqrt(s).

    Args:
        weight: floats, finite.
        rank: from 1 to min(n, k).
        covariance: [k, k], the mean of x x^T; None cuts the weight as it is.
    """
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank: expected 1 to {min(weight.shape)}, got {rank}")
    u, s, vt = decompose(weight, covariance)
    root = s[:rank].sqrt()
    down, up = root[:, None] * vt[:rank], u[:, :rank] * root
    return down.float(), up.float()


def decompose(weight: Tensor, covariance: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """u [n, r], s [r] and vt [r, k] in float64, u @ diag(s) @ vt being the weight [n, k].

    `s` are the singular values of W L: the squared error of a cut after rank r is the sum of the s^2 beyond it.
    The rows of `vt` are orthonormal only without a covariance.
    """
    wide = weight.detach().double()
    if not bool(torch.isfinite(wide).all()):
        raise ValueError("the weight holds NaN or infinity")
    if covariance is None:
        u, s, vt = torch.linalg.svd(wide, full_matrices=False)
        return u, s, vt
    root, inverse = roots(covariance)
    u, s, vt = torch.linalg.svd(wide @ root, full_matrices=False)
    return u, s, vt @ inverse


def roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a covariance [k, k] and its inverse, float64.

    Raises:
        ValueError: it is not square, or holds NaN or infinity.
    """
    if covariance.dim() != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"covariance: expected [k, k], got {list(covariance.shape)}")
    wide = covariance.detach().double()
    if not bool(torch.isfinite(wide).all()):
        raise ValueError("the covariance of the inputs holds NaN or infinity")
    values, vectors = torch.linalg.eigh((wide + wide.T) / 2)
    values = values.clamp_min(0)
    mean = float(values.mean())
    if mean <= 0:  # all inputs were 0: nothing to weigh by
        eye = torch.eye(len(values), dtype=torch.float64)
        return eye, eye.clone()
    scale = (values + _DAMPING * mean).sqrt()
    return (vectors * scale) @ vectors.T, (vectors / scale) @ vectors.T

"""What can be done to one layer alone, given its weight and the second moments of its inputs."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tersor.errors import TersorError
from tersor.factorize.svd import decompose, truncated_svd
from tersor.prune.criteria.sparsegpt import eliminate
from tersor.prune.patterns import parse_pattern
from tersor.quantize.codebooks import decode, make_codebook
from tersor.quantize.corrections.gptq import round_columns
from tersor.second_order import inverse_factor

Solved = tuple[Mapping[str, Tensor], Tensor]


@dataclass(frozen=True)
class LayerJob(abc.ABC):
    """Compresses one layer.

    Attributes:
        name: for messages and files.
        needs_gram: it needs the mean of ``x x^T`` of the layer's inputs.
    """

    name: ClassVar[str] = ""
    needs_gram: ClassVar[bool] = False

    @abc.abstractmethod
    def solve(self, weight: Tensor, gram: Tensor | None) -> Solved:
        """Tensors that stand for a weight, float32 ``[out, in]``, and the weight that they mean."""


@dataclass(frozen=True)
class SVD(LayerJob):
    """``up [out, rank] @ down [rank, in]``, of the smallest rank that keeps ``energy`` of the squared singular values;
    weighted by the inputs where their second moments are given."""

    name: ClassVar[str] = "svd"
    energy: float = 0.9

    def solve(self, weight: Tensor, gram: Tensor | None) -> Solved:
        _, values, _ = decompose(weight, gram)
        kept = values.square().cumsum(0)
        rank = int((kept < self.energy * kept[-1]).sum()) + 1
        down, up = truncated_svd(weight, min(rank, len(values)), gram)
        return {"down": down, "up": up}, up @ down


@dataclass(frozen=True)
class SparseGPT(LayerJob):
    """The weight with zeros in a pattern, the others changed to make up for them. Source: arXiv 2301.00774."""

    name: ClassVar[str] = "sparsegpt"
    needs_gram: ClassVar[bool] = True
    sparsity: float = 0.5
    pattern: str = "1x4"
    damping: float = 0.01

    def solve(self, weight: Tensor, gram: Tensor | None) -> Solved:
        assert gram is not None
        weight, pattern = weight.clone(), parse_pattern(self.pattern)
        held = torch.ones(weight.shape, dtype=torch.bool)
        count = round(self.sparsity * weight.numel())
        eliminate(weight, inverse_factor(gram, self.damping), pattern, count, held, 128)
        return {"weight": weight}, weight


@dataclass(frozen=True)
class GPTQ(LayerJob):
    """Codes uint8 ``[out, in]`` into a table of integers, and one scale for each row. Source: arXiv 2210.17323."""

    name: ClassVar[str] = "gptq"
    needs_gram: ClassVar[bool] = True
    bits: int = 4
    damping: float = 0.01

    def solve(self, weight: Tensor, gram: Tensor | None) -> Solved:
        assert gram is not None
        codes = make_codebook("linear").fit(weight, self.bits, None)
        order = gram.diagonal().argsort(descending=True)
        solved = round_columns(weight, codes, order, inverse_factor(gram[order][:, order], self.damping))
        return {"codes": solved.codes, "table": solved.table, "scale": solved.scale}, decode(solved)


def check(job: LayerJob, grams: object) -> None:
    """Refuse a job without the data it needs.

    Raises:
        TersorError: second moments are missing.
    """
    if job.needs_gram and grams is None:
        raise TersorError(f"{job.name} needs second moments of the layers' inputs: grams=folder of gather_grams")

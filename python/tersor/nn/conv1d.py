"""The Conv1D of transformers (GPT-2), which is a linear layer with its weight stored as [in, out]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.nn.float_linear import float_weight_problem, is_conv1d
from tersor.nn.int8_linear import Int8Linear
from tersor.nn.packed_linear import PackedLinear
from tersor.nn.registry import register
from tersor.nn.sparse_int8_linear import SparseInt8Linear
from tersor.nn.sparse_linear import SparseLinear


class Conv1DClothes(PackedLinear):
    """A layer in the clothes of Conv1D: `nf`, `nx`, and `weight` read as [nx, nf]. Its tensors are [nf, nx]."""

    _conv1d_kind = ""

    @property
    def nf(self) -> int:
        """Output features."""
        return self.out_features

    @property
    def nx(self) -> int:
        """Input features."""
        return self.in_features

    def forward(self, x: Tensor) -> Tensor:
        """[..., nx] to [..., nf]."""
        return super().forward(x)

    @classmethod
    def _reason(cls, module: nn.Module) -> str | None:
        if not is_conv1d(module):
            return f"{type(module).__name__} is not the Conv1D of transformers"
        # The class that defines `forward` must be Conv1D itself.
        owner = next(base for base in type(module).__mro__ if "forward" in base.__dict__)
        if owner.__module__ != "transformers.pytorch_utils" or "forward" in module.__dict__:
            return f"{type(module).__name__} has a forward of its own"
        return float_weight_problem(module)

    @staticmethod
    def _oriented(weight: Tensor) -> Tensor:
        return weight.t()

    def _read_weight(self, transposed: bool = True) -> Tensor:
        return super()._read_weight(transposed)

    @classmethod
    def float_example(cls) -> tuple[nn.Module, Tensor]:
        """Conv1D(33, 70) and x [2, 3, 70]; needs transformers."""
        from transformers.pytorch_utils import Conv1D

        return Conv1D(33, 70), torch.randn(2, 3, 70)  # type: ignore[no-untyped-call]

    def to_float(self) -> nn.Module:
        """A Conv1D with the dequantised weight; needs transformers."""
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            module: nn.Module = Conv1D(self.nf, self.nx)  # type: ignore[no-untyped-call]
        return self._write_float(module)


@register
class Int8Conv1D(Conv1DClothes, Int8Linear):
    """Int8Linear in the clothes of Conv1D."""

    kind = "int8_conv1d"


@register
class SparseInt8Conv1D(Conv1DClothes, SparseInt8Linear):
    """SparseInt8Linear in the clothes of Conv1D; its pattern is that of the weight as [nf, nx]."""

    kind = "sparse_int8_conv1d"


@register
class SparseConv1D(Conv1DClothes, SparseLinear):
    """SparseLinear in the clothes of Conv1D; its pattern is that of the weight as [nf, nx]."""

    kind = "sparse_conv1d"

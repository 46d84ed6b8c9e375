"""A linear layer whose weight is the product of two thin matrices, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.structure.float_modules import count, flag, register_float_module


class FactoredLinear(nn.Module):
    """y = (x V) U + bias, as two products: what a factorised ``nn.Linear`` becomes, and what training goes on with.

    Input: ``[..., in_features]``; output: ``[..., out_features]``. ``weight_down`` is V, ``[rank, in_features]``;
    ``weight_up`` is U, ``[out_features, rank]``; ``weight`` is their product, computed when it is read. tersor.swap and
    a Quantize step run it in one native call (tersor.nn.LowRankLinear, LowRankInt8Linear).

    Raises:
        ValueError: the rank is not from 1 to the smaller of in_features and out_features.
    """

    weight_down: nn.Parameter
    weight_up: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 1 <= rank <= min(in_features, out_features):
            raise ValueError(f"rank: expected 1 to {min(in_features, out_features)}, got {rank}")
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.weight_down = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        self.weight_up = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        for weight in (self.weight_down, self.weight_up):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    @classmethod
    def from_factors(cls, down: Tensor, up: Tensor, bias: Tensor | None = None) -> FactoredLinear:
        """A layer with copies of down ``[rank, in_features]``, up ``[out_features, rank]`` and bias."""
        rank, in_features = down.shape
        module = cls(in_features, up.shape[0], rank, bias is not None, device="meta", dtype=down.dtype)
        module.weight_down = nn.Parameter(down.detach().clone(memory_format=torch.contiguous_format))
        module.weight_up = nn.Parameter(up.detach().clone(memory_format=torch.contiguous_format))
        module.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        return module

    @property
    def weight(self) -> Tensor:
        """The weight that the factors stand for, ``[out_features, in_features]``."""
        return self.weight_up @ self.weight_down

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        return nn.functional.linear(nn.functional.linear(input, self.weight_down), self.weight_up, self.bias)

    def extra_repr(self) -> str:
        """The extents."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}"
        )


register_float_module(
    "FactoredLinear", FactoredLinear, {"in_features": count, "out_features": count, "rank": count, "bias": flag}
)

"""nn.Linear as two thin float matrices, multiplied in one native call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tersor._native import core
from tersor.nn.linear_config import check_settings
from tersor.nn.lowrank_layer import LowRankLayer
from tersor.nn.lowrank_packed import pack_lowrank_f32, unpack_lowrank_f32, widen_lowrank
from tersor.nn.packed_layer import DTYPE_NAMES, DTYPES, Expected
from tersor.nn.registry import register
from tersor.ops import ACTIVATIONS


@register
class LowRankLinear(LowRankLayer):
    """y = activation((x V) U + bias) in float32 arithmetic; x V stays in the cache.

    Input: [..., in_features] in float32, bfloat16 or float16, any strides; output: [..., out_features] in the dtype
    of the input. The factors are rounded to the dtype of the layer. Gradients flow to the input and the bias, never to
    the factors. The state dict holds weight_down [rank, in_features], weight_up [out_features, rank] and bias, as that
    of a tersor.factorize.FactoredLinear does.

    Raises (forward):
        TersorError: x has another dtype, width or device, or no weights were loaded; the message names the layer.
    """

    kind = "lowrank_linear"
    _op_name = "lowrank_f32"
    _dequantize = widen_lowrank._opoverload

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int,
        activation: str = "none",
    ) -> None:
        """A layer without weights: use from_float, or load_state_dict afterwards.

        `activation`: a key of tersor.ops.ACTIVATIONS.
        """
        check_settings(in_features, out_features, activation, 0, 0)
        super().__init__(in_features, out_features, bias, device, dtype)
        self._activation_code = ACTIVATIONS[activation]
        self._start_rank(rank)

    @property
    def kernel(self) -> str:
        """The id of the kernel that the packed weight is for; raises TersorError where there are no weights."""
        return str(core().inspect_lowrank_f32(self.packed.numpy())["kernel"])

    @classmethod
    def from_float(cls, module: nn.Module, *, rank: int | None = None, activation: str = "none") -> Self:
        """Takes over a FactoredLinear, or the best factors of this rank (truncated SVD) of an nn.Linear.

        Raises:
            ValueError: with reason_against(module), or when the rank does not fit or a weight holds NaN or infinity.
        """
        return cls._factor(module, rank, {"activation": activation}, {})

    def config(self) -> dict[str, Any]:
        """What from_config needs, JSON-able."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "dtype": DTYPE_NAMES[self.dtype],
            "activation": self.activation,
            "rank": self.rank,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A layer without weights; raises ValueError when the config is not valid."""
        settings = cls._checked(config, quantised=False)
        return cls(device="cpu", **{**settings, "dtype": DTYPES[settings["dtype"]]})

    @classmethod
    def expected_tensors(cls, config: Mapping[str, Any]) -> Expected:
        """Names, dtypes and shapes of the tensors that `fill` takes; raises ValueError like from_config."""
        settings = cls._checked(config, quantised=False)
        n, k, rank, dtype = *(settings[key] for key in ("out_features", "in_features", "rank")), settings["dtype"]
        expected: Expected = {"weight_down": (DTYPES[dtype], (rank, k)), "weight_up": (DTYPES[dtype], (n, rank))}
        return {**expected, **({"bias": (DTYPES[dtype], (n,))} if settings["bias"] else {})}

    def _pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        down, up = self._checked_factors(tensors)
        return pack_lowrank_f32(down.to(self.dtype).float(), up.to(self.dtype).float())

    def _unpack(self) -> dict[str, Tensor]:
        down, up = unpack_lowrank_f32(self.packed)
        return {"weight_down": down.to(self.dtype), "weight_up": up.to(self.dtype)}

    def _float_factors(self) -> tuple[Tensor, Tensor]:
        return unpack_lowrank_f32(self.packed)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.dtype
        super()._apply(fn, recurse)
        if self.dtype != before and self.has_weights and not self.packed.is_meta:
            self._take_packed(self._pack(self._unpack()))
        return self

    def extra_repr(self) -> str:
        """Adds the rank and a fused activation to nn.Linear's line."""
        fused = "" if self.activation == "none" else f", activation={self.activation}"
        return f"{super().extra_repr()}{fused}"

"""nn.Linear as two thin int8 matrices, with 8-bit activations before each, in one native call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tersor._native import core
from tersor.nn.int8_linear import Int8Linear
from tersor.nn.linear_config import checked_input_scale
from tersor.nn.lowrank_layer import MAX_IN_FEATURES, LowRankLayer
from tersor.nn.lowrank_packed import dequantize_lowrank, pack_lowrank_s8, unpack_lowrank_s8
from tersor.nn.packed_layer import DTYPES, Expected, PackedLayer
from tersor.nn.registry import register
from tersor.quantize import dequantize_s8, quantize_s8

_PARTS = ("weight_down", "weight_up")


@register
class LowRankInt8Linear(LowRankLayer, Int8Linear):
    """y = activation((x V) U + bias): x and x V are quantised to 8 bits row by row, V and U are int8 per channel.

    Input, output and gradients are those of Int8Linear, whose settings it has. The state dict holds weight_down_q int8
    [rank, in_features], weight_up_q int8 [out_features, rank], weight_down_scale float32 [rank], weight_up_scale
    float32 [out_features], bias and, in a smoothed layer, input_scale. A state dict of a FactoredLinear loads too and
    is quantised on the way. in_features is at most 65536. docs/kernels.md, "Low rank", has the formula.

    Raises (forward):
        TersorError: x has another dtype, width or device, or no weights were loaded; the message names the layer.
    """

    kind = "lowrank_int8_linear"
    _op_name = "lowrank_s8"
    _dequantize = dequantize_lowrank._opoverload
    _float_weights = _PARTS

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int,
        **settings: Any,
    ) -> None:
        """A layer without weights: use from_float, or load_state_dict afterwards. `settings`: those of Int8Linear."""
        Int8Linear.__init__(self, in_features, out_features, bias, device, dtype, **settings)
        self._start_rank(rank)

    @property
    def kernel(self) -> str:
        """The id of the kernel that the packed weight is for; raises TersorError where there are no weights."""
        return str(core().inspect_lowrank_s8(self.packed.numpy())["kernel"])

    @classmethod
    def from_float(
        cls,
        module: nn.Module,
        *,
        rank: int | None = None,
        activation: str = "none",
        x_scale: float = 0.0,
        x_zero_point: int = 0,
        input_scale: Tensor | None = None,
    ) -> Self:
        """Quantises a FactoredLinear, or the best factors of this rank (truncated SVD) of an nn.Linear.

        The other arguments are those of Int8Linear.from_float.

        Raises:
            ValueError: with reason_against(module), or when the rank does not fit or a weight holds NaN or infinity.
        """
        settings: dict[str, Any] = {"activation": activation, "x_scale": x_scale, "x_zero_point": x_zero_point}
        if input_scale is None:
            return cls._factor(module, rank, settings, {})
        return cls._factor(module, rank, {**settings, "smoothed": True}, {"input_scale": input_scale})

    @classmethod
    def reason_against(cls, module: nn.Module) -> str | None:
        """Why `module` cannot become this layer, or None when it can."""
        wide = getattr(module, "in_features", 0)
        if isinstance(wide, int) and wide > MAX_IN_FEATURES:
            return f"it has {wide} in_features; low-rank int8 takes {MAX_IN_FEATURES}"
        return super().reason_against(module)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A layer without weights; raises ValueError when the config is not valid."""
        settings = cls._checked(config, quantised=True)
        return cls(device="cpu", **{**settings, "dtype": DTYPES[settings["dtype"]]})

    @classmethod
    def expected_tensors(cls, config: Mapping[str, Any]) -> Expected:
        """Names, dtypes and shapes of the tensors that `fill` takes; raises ValueError like from_config."""
        settings = cls._checked(config, quantised=True)
        rank = settings["rank"]
        rest = Int8Linear.expected_tensors({key: value for key, value in settings.items() if key != "rank"})
        del rest["weight_q"], rest["weight_scale"]
        n, k = settings["out_features"], settings["in_features"]
        return {
            "weight_down_q": (torch.int8, (rank, k)),
            "weight_down_scale": (torch.float32, (rank,)),
            "weight_up_q": (torch.int8, (n, rank)),
            "weight_up_scale": (torch.float32, (n,)),
            **rest,
        }

    def _pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        input_scale = tensors.get("input_scale")
        if "weight_down" not in tensors:
            down, up = ((tensors[f"{part}_q"], tensors[f"{part}_scale"]) for part in _PARTS)
            return pack_lowrank_s8(down, up, input_scale)
        if self.smoothed and input_scale is None:
            if not self.has_weights:
                raise ValueError("a float weight does not say how to smooth; load the quantised tensors")
            input_scale = unpack_lowrank_s8(self.packed)[2]
        if input_scale is not None:
            input_scale = checked_input_scale(input_scale, self.in_features)
        float_down, float_up = self._checked_factors(tensors)
        return pack_lowrank_s8(quantize_s8(float_down, input_scale), quantize_s8(float_up), input_scale)

    def _unpack(self) -> dict[str, Tensor]:
        down, up, input_scale = unpack_lowrank_s8(self.packed)
        return {
            "weight_down_q": down[0],
            "weight_down_scale": down[1],
            "weight_up_q": up[0],
            "weight_up_scale": up[1],
            **({} if input_scale is None else {"input_scale": input_scale}),
        }

    def _float_factors(self) -> tuple[Tensor, Tensor]:
        down, up, input_scale = unpack_lowrank_s8(self.packed)
        return dequantize_s8(*down, input_scale), dequantize_s8(*up)

    def _moved(self, packed: Tensor, device: torch.device) -> Tensor:
        return PackedLayer._moved(self, packed, device)

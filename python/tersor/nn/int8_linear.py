"""nn.Linear with int8 weights, 8-bit activations and the activation function in one native call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tersor._native import core
from tersor.nn.linear_config import check_settings, checked_config, checked_input_scale
from tersor.nn.packed_layer import DTYPE_NAMES, DTYPES, Expected
from tersor.nn.packed_linear import PackedLinear
from tersor.nn.packed_weight import input_scale_of, move, pack_canonical, pack_float, unpack
from tersor.nn.registry import register
from tersor.ops import ACTIVATIONS


@register
class Int8Linear(PackedLinear):
    """y = activation(x W^T + bias) with W in int8 and x quantised to 8 bits on the fly.

    Input: [..., in_features] in float32, bfloat16 or float16, any strides; output: [..., out_features] in the dtype
    of the input, whatever the dtype of the layer. Gradients flow to the input and the bias (straight-through), never
    to the weight. `weight` is readable, computed on demand and read-only. The state dict holds weight_q int8
    [out_features, in_features], weight_scale float32 [out_features], bias and, in a smoothed layer, input_scale float32
    [in_features], by which x is multiplied before it is quantised. A state dict of nn.Linear loads too and is
    quantised on the way, with the smoothing that the layer has. docs/kernels.md has the formula.

    Raises (forward):
        TersorError: x has another dtype, width or device, or no weights were loaded; the message names the layer.
    """

    kind = "int8_linear"
    _op_name = "linear_s8"
    _conv1d_kind = "int8_conv1d"
    optional = ("input_scale",)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        x_scale: float = 0.0,
        x_zero_point: int = 0,
        smoothed: bool = False,
    ) -> None:
        """A layer without weights: use from_float, or load_state_dict afterwards.

        `activation`: a key of tersor.ops.ACTIVATIONS. `x_scale` 0: x is quantised row by row; above 0: with this
        scale and `x_zero_point` in [0, 255]. `smoothed`: it has an input_scale.
        """
        check_settings(in_features, out_features, activation, x_scale, x_zero_point)
        super().__init__(in_features, out_features, bias, device, dtype)
        self._activation_code = ACTIVATIONS[activation]
        self.x_scale, self.x_zero_point = float(x_scale), x_zero_point
        self.smoothed = smoothed

    @property
    def kernel(self) -> str:
        """The id of the kernel that the packed weight is for; raises TersorError where there are no weights."""
        return str(core().inspect_s8(self.packed.numpy())["kernel"])

    @classmethod
    def from_float(
        cls,
        module: nn.Module,
        *,
        activation: str = "none",
        x_scale: float = 0.0,
        x_zero_point: int = 0,
        input_scale: Tensor | None = None,
    ) -> Self:
        """Quantises an nn.Linear (or a transformers Conv1D, which gives an Int8Conv1D) in blocks of rows.

        The bias is copied and the training flag taken over; hooks are moved by tersor.swap. `module` is not
        changed. Peak memory beyond `module` is the packed weight and a few megabytes.

        `input_scale`: float32 [in_features], such as tersor.quantize.input_scale gives; the layer multiplies x by it
        before x is quantised, and the weight is divided by it. `x_scale` is then that of the product.

        Raises:
            ValueError: with reason_against(module), or when the weight holds NaN or infinity, or input_scale is not
                finite and positive.
        """
        settings: dict[str, Any] = {"activation": activation, "x_scale": x_scale, "x_zero_point": x_zero_point}
        if input_scale is None:
            return cls._convert(module, settings, {})
        return cls._convert(module, {**settings, "smoothed": True}, {"input_scale": input_scale})

    def config(self) -> dict[str, Any]:
        """What from_config needs, JSON-able."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "dtype": DTYPE_NAMES[self.dtype],
            "activation": self.activation,
            "x_scale": self.x_scale,
            "x_zero_point": self.x_zero_point,
            "smoothed": self.smoothed,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A layer without weights; raises ValueError when the config is not valid."""
        settings = checked_config(config)
        return cls(device="cpu", **{**settings, "dtype": DTYPES[settings["dtype"]]})

    @classmethod
    def expected_tensors(cls, config: Mapping[str, Any]) -> Expected:
        """Names, dtypes and shapes of the tensors that `fill` takes; raises ValueError like from_config."""
        settings = checked_config(config)
        n, k = settings["out_features"], settings["in_features"]
        expected: Expected = {"weight_q": (torch.int8, (n, k)), "weight_scale": (torch.float32, (n,))}
        if settings["smoothed"]:
            expected["input_scale"] = (torch.float32, (k,))
        if settings["bias"]:
            expected["bias"] = (DTYPES[settings["dtype"]], (n,))
        return expected

    def _pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        input_scale = tensors.get("input_scale")
        if "weight" not in tensors:
            return pack_canonical(tensors["weight_q"], tensors["weight_scale"], input_scale)
        if self.smoothed and input_scale is None:
            if not self.has_weights:
                raise ValueError("a float weight does not say how to smooth; load the quantised tensors")
            input_scale = input_scale_of(self.packed, self.out_features, self.in_features)
        if input_scale is not None:
            input_scale = checked_input_scale(input_scale, self.in_features)
        return pack_float(self._checked_float_weight(tensors["weight"]), input_scale)

    def _unpack(self) -> dict[str, Tensor]:
        q, scale = unpack(self.packed, self.out_features, self.in_features)
        input_scale = input_scale_of(self.packed, self.out_features, self.in_features)
        smoothing = {} if input_scale is None else {"input_scale": input_scale}
        return {"weight_q": q, "weight_scale": scale, **smoothing}

    def _moved(self, packed: Tensor, device: torch.device) -> Tensor:
        return move(packed, self.out_features, self.in_features, device)

    def extra_repr(self) -> str:
        """Adds what is quantised and how to nn.Linear's line."""
        how = "dynamic" if self.x_scale == 0 else f"static({self.x_scale:.6g}, {self.x_zero_point})"
        how += ", smoothed" if self.smoothed else ""
        fused = "" if self.activation == "none" else f", activation={self.activation}"
        return f"{super().extra_repr()}, weights=int8, activations={how}{fused}"

"""nn.Conv2d and nn.Conv1d with int8 weights and 8-bit activations in one native call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tersor._native import core
from tersor.errors import TersorError
from tersor.nn.conv_autograd import conv_with_grad
from tersor.nn.conv_config import (
    checked_conv,
    conv_extents,
    conv_problem,
    conv_settings,
    conv_shape,
    float_conv,
    one_conv_graph,
)
from tersor.nn.dequantized_weight import READ_ONLY
from tersor.nn.int8_graph import quantized_filter
from tersor.nn.packed_layer import DTYPE_NAMES, DTYPES, Expected, PackedLayer
from tersor.nn.registry import register
from tersor.ops import GRAPH_S8

_NOTHING = torch.empty(0)


class _Int8Conv(PackedLayer):
    """What the two kinds share. Inputs of one dimension are pictures of height 1 to the kernel."""

    _float: ClassVar[type[nn.Module]]
    _dimensions: ClassVar[int]
    bias: Any
    in_channels: Any
    out_channels: Any
    groups: Any
    kernel_size: Any
    stride: Any
    padding: Any
    dilation: Any

    def __init__(self, config: Mapping[str, Any]) -> None:
        """A layer without weights: use from_float, or load_state_dict afterwards."""
        nn.Module.__init__(self)
        settings = checked_conv(config, self._dimensions)
        for name, value in conv_settings(settings).items():
            setattr(self, name, value)
        self.x_scale, self.x_zero_point = float(settings["x_scale"]), int(settings["x_zero_point"])
        self._start_empty(DTYPES[settings["dtype"]], "cpu")
        self._shape = conv_shape(settings, self._dimensions)
        bias = nn.Parameter(torch.zeros(settings["out_channels"], dtype=self._dtype), requires_grad=False)
        self.register_parameter("bias", bias if settings["bias"] else None)

    def forward(self, input: Tensor) -> Tensor:
        """As the float layer's: [n, in_channels, ...] to [n, out_channels, ...], or both without n."""
        if (problem := self._shape_problem(input)) is not None:
            raise TersorError(f"{self._label()}: {problem}")
        bias = self._parameters["bias"]
        if torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad)):
            return conv_with_grad(self, input, bias)
        return self._compute(input, bias)

    def _compute(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The native op, with x in any layout that the float layer takes."""
        pictures = x if x.dim() == self._dimensions + 2 else x[None]
        pictures = pictures if self._dimensions == 2 else pictures[:, :, None]
        height, width = conv_extents(self._shape, pictures.shape[2], pictures.shape[3])
        try:
            y: Tensor = GRAPH_S8(
                pictures.float(),
                self._buffers["packed"],
                _NOTHING if bias is None else bias.float(),
                self._shape[1],
                height,
                width,
            )
        except RuntimeError as error:
            if self.has_weights:
                raise
            raise TersorError(f"{self._label()}: the layer has no weights yet; load a state dict first") from error
        y = y.to(x.dtype)
        if not (self._dimensions == 2 and pictures.is_contiguous(memory_format=torch.channels_last)):
            y = y.contiguous()
        y = y if self._dimensions == 2 else y[:, :, 0]
        return y if x.dim() == self._dimensions + 2 else y[0]

    @property
    def weight(self) -> Tensor:
        """The dequantised weight in the layer's dtype, computed when it is read."""
        if not self.has_weights:
            raise TersorError(f"{self._label()} has no weights yet: load a state dict first")
        tensors = self._unpack()
        scale = tensors["weight_scale"].reshape(-1, *[1] * (self._dimensions + 1))
        return (tensors["weight_q"].float() * scale).to(self.dtype)

    @weight.setter
    def weight(self, value: Any) -> NoReturn:
        raise TersorError(f"{self._label()}: {READ_ONLY}")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As nn.Module's; the weight cannot be set."""
        if name == "weight":
            raise TersorError(f"{self._label()}: {READ_ONLY}")
        super().register_parameter(name, param)

    def reset_parameters(self) -> None:
        """Raises TersorError: an accelerated layer takes its weights from a float layer or a state dict."""
        raise TersorError(f"{self._label()}: {READ_ONLY}")

    @property
    def kernel(self) -> str:
        """The id of the kernel that the packed weight is for; raises TersorError where there are no weights."""
        if not self.has_weights:
            raise TersorError(f"{self._label()} has no weights yet: load a state dict first")
        return str(core().graph_kernel_s8(self.packed.numpy()))

    @classmethod
    def reason_against(cls, module: nn.Module) -> str | None:
        """Why `module` cannot become this layer, or None when it can."""
        return conv_problem(module, cls._float)

    @classmethod
    def from_float(cls, module: nn.Module, *, x_scale: float = 0.0, x_zero_point: int = 0) -> Self:
        """Quantises the weight of a float layer; the bias is copied and the training flag taken over.

        `x_scale` 0: each picture (or sequence) is quantised by its own range; above 0: with this scale and
        `x_zero_point` in [0, 255].

        Raises:
            ValueError: with reason_against(module), or when the weight holds NaN or infinity.
        """
        if (reason := cls.reason_against(module)) is not None:
            raise ValueError(reason)
        config: dict[str, Any] = {name: getattr(module, name) for name in ("in_channels", "out_channels", "groups")}
        config |= {name: list(getattr(module, name)) for name in ("kernel_size", "stride", "dilation")}
        padding: Any = module.padding
        config["padding"] = padding if isinstance(padding, str) else list(padding)
        weight: Tensor = module.weight  # type: ignore[assignment]
        config |= {"bias": module.bias is not None, "dtype": DTYPE_NAMES[weight.dtype]}
        with torch.inference_mode(False), torch.no_grad():
            layer = cls({**config, "x_scale": x_scale, "x_zero_point": x_zero_point})
            layer._take_packed(layer._pack({"weight": weight}))
            if isinstance(module.bias, Tensor):
                layer.bias.copy_(module.bias)
        layer.training = module.training
        return layer

    def to_float(self) -> nn.Module:
        """The float layer with the dequantised weight."""
        module = float_conv(self._float, self.config())
        module.weight = nn.Parameter(self.weight)
        if self.bias is not None:
            module.bias = nn.Parameter(self.bias.detach().clone())
        return module.train(self.training)

    def config(self) -> dict[str, Any]:
        """What from_config needs, JSON-able."""
        settings: dict[str, Any] = {
            name: getattr(self, name) for name in ("in_channels", "out_channels", "groups", "x_scale", "x_zero_point")
        }
        settings |= {name: list(getattr(self, name)) for name in ("kernel_size", "stride", "dilation")}
        settings["padding"] = self.padding if isinstance(self.padding, str) else list(self.padding)
        return {**settings, "bias": self.bias is not None, "dtype": DTYPE_NAMES[self.dtype]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A layer without weights; raises ValueError when the config is not valid."""
        return cls(config)

    @classmethod
    def expected_tensors(cls, config: Mapping[str, Any]) -> Expected:
        """Names, dtypes and shapes of the tensors that `fill` takes; raises ValueError like from_config."""
        settings = checked_conv(config, cls._dimensions)
        out = settings["out_channels"]
        shape = (out, settings["in_channels"] // settings["groups"], *settings["kernel_size"])
        expected: Expected = {"weight_q": (torch.int8, shape), "weight_scale": (torch.float32, (out,))}
        if settings["bias"]:
            expected["bias"] = (DTYPES[settings["dtype"]], (out,))
        return expected

    def _pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        expected = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        if "weight" in tensors:
            weight = tensors["weight"].detach()
            if tuple(weight.shape) != expected or weight.device.type != "cpu":
                raise ValueError(
                    f"weight: expected {list(expected)} on cpu, got {list(weight.shape)} on {weight.device}"
                )
            q, scale = quantized_filter(weight)
        else:
            q, scale = tensors["weight_q"], tensors["weight_scale"]
        return one_conv_graph(self._shape, q, scale, self.x_scale, self.x_zero_point)

    def _unpack(self) -> dict[str, Tensor]:
        q, scale, _ = core().unpack_graph_conv_s8(self.packed.numpy(), 0, self._shape)
        weight = torch.from_numpy(q).permute(0, 3, 1, 2)
        weight = weight if self._dimensions == 2 else weight[:, :, 0]
        return {"weight_q": weight.contiguous(), "weight_scale": torch.from_numpy(scale)}

    def _shape_problem(self, x: object) -> str | None:
        places = ", ".join([str(self.in_channels), *("height", "width")[-self._dimensions :]])
        if not isinstance(x, Tensor):
            return f"expected a tensor [n, {places}], got {type(x).__name__}"
        if x.layout != torch.strided or x.is_nested or x.device != self.packed.device:
            kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
            return f"expected a dense tensor on {self.packed.device}, got a {kind} one on {x.device}; convert it"
        if x.dtype not in DTYPE_NAMES:
            return f"expected x in {', '.join(DTYPES)}, got {x.dtype}; convert it with x.float()"
        if (
            x.dim() not in (self._dimensions + 1, self._dimensions + 2)
            or x.shape[-1 - self._dimensions] != self.in_channels
        ):
            return f"expected x [n, {places}], got {list(x.shape)}; see what the layer before gives out"
        return None

    def extra_repr(self) -> str:
        """Adds what is quantised and how to the float layer's line."""
        how = "dynamic" if self.x_scale == 0 else f"static({self.x_scale:.6g}, {self.x_zero_point})"
        return f"{super().extra_repr()}, weights=int8, activations={how}"


@register
class Int8Conv2d(_Int8Conv, nn.Conv2d):
    """nn.Conv2d with W in int8 and x quantised to 8 bits on the fly.

    Input: what nn.Conv2d takes, in float32, bfloat16 or float16 and any memory format; output: the same dtype, and
    channels last where the input is. Each picture has its own range, or all the static one; zeros of the padding are
    exact. Gradients flow to the input and the bias (straight-through), never to the weight, which is readable and
    read-only. The state dict holds weight_q int8 [out, in / groups, kernel_h, kernel_w], weight_scale float32 [out] and
    bias; one of nn.Conv2d loads too. docs/conv.md has the formula.

    Raises (forward):
        TersorError: x has another dtype, shape or device, or no weights were loaded; the message names the layer.
    """

    kind = "int8_conv2d"
    _float = nn.Conv2d
    _dimensions = 2

    @classmethod
    def float_example(cls) -> tuple[nn.Module, Tensor]:
        """nn.Conv2d(6, 10, 3, padding=1) and x [2, 6, 9, 8]."""
        return nn.Conv2d(6, 10, 3, padding=1), torch.randn(2, 6, 9, 8)


@register
class Int8Conv1d(_Int8Conv, nn.Conv1d):
    """nn.Conv1d with W in int8 and x quantised to 8 bits on the fly; otherwise as Int8Conv2d.

    The state dict holds weight_q int8 [out, in / groups, kernel], weight_scale float32 [out] and bias.

    Raises (forward):
        TersorError: x has another dtype, shape or device, or no weights were loaded; the message names the layer.
    """

    kind = "int8_nn_conv1d"
    _float = nn.Conv1d
    _dimensions = 1

    @classmethod
    def float_example(cls) -> tuple[nn.Module, Tensor]:
        """nn.Conv1d(6, 10, 3, padding=1) and x [2, 6, 20]."""
        return nn.Conv1d(6, 10, 3, padding=1), torch.randn(2, 6, 20)

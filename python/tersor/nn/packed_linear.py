"""The surface of nn.Linear over a packed weight; how it is packed and multiplied is the subclass's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from typing_extensions import Self

from tersor.errors import TersorError
from tersor.nn.dequantized_weight import READ_ONLY, DequantizedWeight
from tersor.nn.eager import EagerLinear, eager, never
from tersor.nn.float_linear import float_weight_problem, is_conv1d
from tersor.nn.linear_autograd import LINEAR_OPS, linear_with_grad
from tersor.nn.packed_layer import DTYPE_NAMES, DTYPES, PackedLayer
from tersor.nn.packed_weight import dequantize
from tersor.nn.registry import REGISTRY
from tersor.ops import ACTIVATIONS

_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_NOTHING = torch.empty(0)  # no bias, no residual
_ACTIVATION_NAMES = {code: name for name, code in ACTIVATIONS.items()}


class PackedLinear(PackedLayer, nn.Linear):
    """in_features, out_features, bias and a readable, read-only weight, without nn.Linear's float memory."""

    x_scale: float = 0.0
    x_zero_point: int = 0
    _activation_code: int
    _op_name: ClassVar[str]  # a key of LINEAR_OPS
    _eager: ClassVar[EagerLinear] = staticmethod(never)  # the short way past that op
    _dequantize: ClassVar[Any] = dequantize._opoverload  # packed bytes to the float weight
    _conv1d_kind: ClassVar[str] = ""  # the kind of the layer that takes the Conv1D of transformers in this one's place

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        nn.Module.__init__(self)
        dtype = dtype or torch.get_default_dtype()
        self.in_features, self.out_features = in_features, out_features
        self._start_empty(dtype, device)
        parameter = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype), requires_grad=False)
        self.register_parameter("bias", parameter if bias else None)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_op_name" in cls.__dict__:
            cls._eager = staticmethod(eager(cls._op_name))

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        if not _is_dynamo_compiling() and (y := self._eager(self, input)) is not None:
            return y
        return self._through_op(input)

    def _through_op(self, x: Tensor) -> Tensor:
        """The layer's torch op on x [..., in_features]; with its gradients where they are asked for."""
        # Past Module.__getattr__, which costs half a microsecond for each name.
        packed: Tensor = self._buffers["packed"]  # type: ignore[assignment]
        parameter = self._parameters["bias"]
        try:
            bias: Tensor = _NOTHING if parameter is None else parameter
            if bias.dtype is not torch.float32 and bias.dtype is not x.dtype:
                bias = bias.float()
            settings = (self.out_features, self._activation_code, self.x_scale, self.x_zero_point)
            if forward_ad._current_level >= 0 or (torch.is_grad_enabled() and (x.requires_grad or bias.requires_grad)):
                return linear_with_grad(self._op_name, x, packed, bias, *settings)
            return LINEAR_OPS[self._op_name][0](x, packed, bias, _NOTHING, *settings)
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
            problem = self._input_problem(x)
            if problem is None:
                raise
            raise TersorError(f"{self._label()}: {problem}") from error

    @property
    def activation(self) -> str:
        """The name of the activation function that is part of the layer."""
        return _ACTIVATION_NAMES[self._activation_code]

    @property
    def weight(self) -> Tensor:
        """The dequantised weight [out_features, in_features] in the layer's dtype, computed when it is read."""
        return self._read_weight()

    @weight.setter
    def weight(self, value: Any) -> NoReturn:
        raise TersorError(f"{self._label()}: {READ_ONLY}")

    def _read_weight(self, transposed: bool = False) -> Tensor:
        packed: Tensor = self._buffers["packed"]  # type: ignore[assignment]
        if torch.compiler.is_dynamo_compiling():
            weight: Tensor = self._dequantize(packed, self.out_features, self.in_features, self.dtype)
            return weight.t() if transposed else weight
        dtype, view = self.dtype, self.__dict__.get("_weight_view")
        if view is None or view.packed is not packed or view.float_dtype is not dtype:
            view = DequantizedWeight(packed, self.out_features, self.in_features, dtype, self._dequantize, transposed)
            if not torch.compiler.is_compiling():
                self.__dict__["_weight_view"] = view
        return view

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As nn.Module's; the weight cannot be set."""
        if name == "weight":
            raise TersorError(f"{self._label()}: {READ_ONLY}")
        super().register_parameter(name, param)

    def reset_parameters(self) -> None:
        """Raises TersorError: an accelerated layer takes its weights from a float layer or a state dict."""
        raise TersorError(f"{self._label()}: {READ_ONLY}")

    @classmethod
    def reason_against(cls, module: nn.Module) -> str | None:
        """Why `module` cannot become this layer, or None when it can."""
        taker = cls._taker(module)
        return cls._reason(module) if taker is cls else taker.reason_against(module)

    @classmethod
    def _reason(cls, module: nn.Module) -> str | None:
        if not isinstance(module, nn.Linear):
            return f"{type(module).__name__} is not an nn.Linear"
        if isinstance(module, NonDynamicallyQuantizableLinear):
            return "the out_proj of nn.MultiheadAttention is never called: attention reads its weight as a matrix"
        if type(module).forward is not nn.Linear.forward or "forward" in module.__dict__:
            return f"{type(module).__name__} has a forward of its own"
        return float_weight_problem(module)

    @classmethod
    def _taker(cls, module: nn.Module) -> type[Self]:
        """The class that replaces `module` where this one is asked to: that of Conv1D for a Conv1D."""
        return cast(type[Self], REGISTRY[cls._conv1d_kind]) if cls._conv1d_kind and is_conv1d(module) else cls

    @classmethod
    def _convert(cls, module: nn.Module, settings: dict[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The layer for a float one; `tensors` are those that _pack wants beside the float weight."""
        if (taker := cls._taker(module)) is not cls:
            return taker._convert(module, settings, tensors)
        reason = cls.reason_against(module)
        if reason is not None:
            raise ValueError(reason)
        weight, bias = cls._oriented(module.weight.detach()), module.bias  # type: ignore[operator]
        out_features, in_features = weight.shape
        with torch.inference_mode(False), torch.no_grad():
            layer = cls(in_features, out_features, bias is not None, "cpu", weight.dtype, **settings)
            layer._take_packed(layer._pack({"weight": module.weight, **tensors}))  # type: ignore[dict-item]
            if isinstance(bias, Tensor):
                layer.bias.copy_(bias)
        layer.training = module.training
        return layer

    @staticmethod
    def _oriented(weight: Tensor) -> Tensor:
        """The weight of the float layer as [out_features, in_features]."""
        return weight

    @classmethod
    def float_example(cls) -> tuple[nn.Module, Tensor]:
        """nn.Linear(70, 33) and x [2, 3, 70]."""
        return nn.Linear(70, 33), torch.randn(2, 3, 70)

    def to_float(self) -> nn.Module:
        """An nn.Linear with the dequantised weight. A fused activation is not part of it."""
        return self._write_float(nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta"))

    def _write_float(self, module: nn.Module) -> nn.Module:
        module.weight = nn.Parameter(self.weight.clone())
        if self.bias is not None:
            module.bias = nn.Parameter(self.bias.detach().clone())
        module.train(self.training)
        return module

    def _checked_float_weight(self, weight: Tensor) -> Tensor:
        """A float weight as it stands in the float layer's state dict, as [out_features, in_features]."""
        shape = (self.out_features, self.in_features)
        turned = self._oriented(weight.detach()) if weight.dim() == 2 else weight
        if tuple(turned.shape) != shape or turned.device.type != "cpu":
            raise ValueError(f"weight: expected {list(shape)} on cpu, got {list(turned.shape)} on {turned.device}")
        return turned

    def _input_problem(self, x: object) -> str | None:
        if not self.has_weights:
            return "the layer has no weights yet; load a state dict first"
        if not isinstance(x, Tensor):
            return f"expected a tensor [..., {self.in_features}], got {type(x).__name__}"
        device = self.packed.device
        if x.layout != torch.strided or x.is_nested or x.device != device:
            kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
            return f"expected a dense tensor on {device}, got a {kind} one on {x.device}; convert it or move it there"
        if x.dtype not in DTYPE_NAMES:
            return f"expected x in {', '.join(DTYPES)}, got {x.dtype}; convert it with x.float()"
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            return (
                f"expected x [..., {self.in_features}], got {list(x.shape)}; the last dimension must be in_features "
                f"= {self.in_features}, see what the layer before gives out"
            )
        return None

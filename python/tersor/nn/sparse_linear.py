"""nn.Linear with float weights that are mostly 0: only the others are stored and multiplied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tersor._native import core
from tersor.nn.linear_config import check_settings, checked_config
from tersor.nn.packed_layer import DTYPE_NAMES, DTYPES, Expected
from tersor.nn.registry import register
from tersor.nn.sparse_layer import SparseLayer
from tersor.nn.sparse_packed import pack_sparse_f32, unpack_sparse_f32, widen_sparse
from tersor.nn.sparse_weight import UNSTRUCTURED, compact, expand
from tersor.ops import ACTIVATIONS


@register
class SparseLinear(SparseLayer):
    """y = activation(x W^T + bias) with a float W that is mostly 0, in float32 arithmetic.

    Input: [..., in_features] in float32, bfloat16 or float16, any strides; output: [..., out_features] in the dtype
    of the input. The weight is rounded to the dtype of the layer, as that of nn.Linear is by `.to(dtype)`. Gradients
    flow to the input and the bias, never to the weight, which is readable, computed on demand and read-only.
    `pattern` says how the zeros lie: "1x4" and other blocks (outputs x inputs), "unstructured", or N:M such as "2:4";
    the kernels accept any. The state dict holds weight_mask uint8 (one bit a block), weight_values [kept, weights of a
    block] and bias; docs/format.md has the details.

    Raises (forward):
        TersorError: x has another dtype, width or device, or no weights were loaded; the message names the layer.
    """

    kind = "sparse_linear"
    _conv1d_kind = "sparse_conv1d"
    _op_name = "spmm_f32"
    _dequantize = widen_sparse._opoverload

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        pattern: str = UNSTRUCTURED,
        kept: int = 0,
    ) -> None:
        """A layer without weights: use from_float, or load_state_dict afterwards.

        `activation`: a key of tersor.ops.ACTIVATIONS. `pattern` and `kept`, the number of blocks that are not 0,
        describe the state dict.
        """
        check_settings(in_features, out_features, activation, 0, 0)
        super().__init__(in_features, out_features, bias, device, dtype)
        self._activation_code = ACTIVATIONS[activation]
        self._start_sparse(pattern, kept)

    @property
    def kernel(self) -> str:
        """The id of the kernel that the packed weight is for; raises TersorError where there are no weights."""
        return str(core().inspect_sparse_f32(self.packed.numpy())["kernel"])

    @classmethod
    def from_float(cls, module: nn.Module, *, activation: str = "none", pattern: str | None = None) -> Self:
        """Takes over a pruned nn.Linear; its values stay as they are.

        `pattern`: how the zeros lie; None looks at the weight and takes "1x4" or "unstructured".

        Raises:
            ValueError: with reason_against(module), or when the weight holds NaN or infinity or breaks an N:M pattern.
        """
        return cls._convert(module, {"activation": activation, "pattern": cls._pattern_for(module, pattern)}, {})

    def config(self) -> dict[str, Any]:
        """What from_config needs, JSON-able."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "dtype": DTYPE_NAMES[self.dtype],
            "activation": self.activation,
            "pattern": self.pattern,
            "kept": self.kept,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A layer without weights; raises ValueError when the config is not valid."""
        settings = checked_config(config, sparse=True, quantised=False)
        return cls(device="cpu", **{**settings, "dtype": DTYPES[settings["dtype"]]})

    @classmethod
    def expected_tensors(cls, config: Mapping[str, Any]) -> Expected:
        """Names, dtypes and shapes of the tensors that `fill` takes; raises ValueError like from_config."""
        settings = checked_config(config, sparse=True, quantised=False)
        dtype = DTYPES[settings["dtype"]]
        bias: Expected = {"bias": (dtype, (settings["out_features"],))} if settings["bias"] else {}
        return {**cls._expected_blocks("weight_values", dtype, settings), **bias}

    def _pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        if "weight" in tensors:
            weight = self._checked_float_weight(tensors["weight"]).to(self.dtype)
            self.grid.check(weight)
        else:
            weight = expand(tensors["weight_mask"], tensors["weight_values"], self.grid)
        if not bool(torch.isfinite(weight).all()):
            raise ValueError("the weight holds NaN or infinity")
        return pack_sparse_f32(weight.float())

    def _unpack(self) -> dict[str, Tensor]:
        mask, values = compact(unpack_sparse_f32(self.packed).to(self.dtype), self.grid)
        return {"weight_mask": mask, "weight_values": values}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.dtype
        super()._apply(fn, recurse)
        if self.dtype != before and self.has_weights and not self.packed.is_meta:
            self._take_packed(self._pack({"weight": self._oriented(unpack_sparse_f32(self.packed))}))
        return self

    def extra_repr(self) -> str:
        """Adds the pattern, what is kept and a fused activation to nn.Linear's line."""
        fused = "" if self.activation == "none" else f", activation={self.activation}"
        return f"{super().extra_repr()}{fused}"

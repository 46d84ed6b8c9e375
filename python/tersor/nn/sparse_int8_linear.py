"""nn.Linear with int8 weights that are mostly 0: only the others are stored and multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tersor._native import core
from tersor.nn.float_linear import weight_matrix
from tersor.nn.int8_linear import Int8Linear
from tersor.nn.linear_config import checked_config, checked_input_scale
from tersor.nn.packed_layer import DTYPES, Expected
from tersor.nn.registry import register
from tersor.nn.sparse_layer import SparseLayer
from tersor.nn.sparse_packed import dequantize_sparse, pack_sparse_s8, unpack_sparse_s8
from tersor.nn.sparse_weight import UNSTRUCTURED, compact, expand
from tersor.quantize import quantize_s8

MAX_IN_FEATURES = 65536


@register
class SparseInt8Linear(SparseLayer, Int8Linear):
    """Int8Linear for a weight that is mostly 0: the same numbers, bit for bit, from less memory and in less time.

    `pattern` says how the zeros lie: "1x4" and other blocks (outputs x inputs), "unstructured", or N:M such as "2:4".
    The kernels accept any zeros; 1x4 blocks suit them best. The state dict holds weight_mask uint8 (one bit a block),
    weight_q int8 [kept, weights of a block], weight_scale, bias and input_scale as Int8Linear has them; docs/format.md
    has the details. in_features is at most 65536.
    """

    kind = "sparse_int8_linear"
    _conv1d_kind = "sparse_int8_conv1d"
    _op_name = "spmm_s8"
    _dequantize = dequantize_sparse._opoverload

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        pattern: str = UNSTRUCTURED,
        kept: int = 0,
        **settings: Any,
    ) -> None:
        """A layer without weights: use from_float, or load_state_dict afterwards.

        `pattern` and `kept`, the number of blocks that are not 0, describe the state dict; the other arguments are
        those of Int8Linear.
        """
        super().__init__(in_features, out_features, bias, device, dtype, **settings)
        self._start_sparse(pattern, kept)

    @property
    def kernel(self) -> str:
        """The id of the kernel that the packed weight is for; raises TersorError where there are no weights."""
        return str(core().inspect_sparse_s8(self.packed.numpy())["kernel"])

    @property
    def form(self) -> str:
        """How the packed weight holds what is not 0, see docs/kernels.md: "quads", "ordered quads" or "columns"."""
        return str(core().inspect_sparse_s8(self.packed.numpy())["form"])

    @classmethod
    def from_float(
        cls,
        module: nn.Module,
        *,
        activation: str = "none",
        x_scale: float = 0.0,
        x_zero_point: int = 0,
        input_scale: Tensor | None = None,
        pattern: str | None = None,
    ) -> Self:
        """Quantises a pruned nn.Linear; zeros stay 0. The arguments are those of Int8Linear.from_float.

        `pattern`: how the zeros lie; None looks at the weight and takes "1x4" or "unstructured". Peak memory beyond
        `module` is the weight in int8 and the packed weight.

        Raises:
            ValueError: with reason_against(module), or when the weight holds NaN or infinity or breaks an N:M pattern.
        """
        settings: dict[str, Any] = {"activation": activation, "x_scale": x_scale, "x_zero_point": x_zero_point}
        settings["pattern"] = cls._pattern_for(module, pattern)
        if input_scale is None:
            return cls._convert(module, settings, {})
        return cls._convert(module, {**settings, "smoothed": True}, {"input_scale": input_scale})

    @classmethod
    def reason_against(cls, module: nn.Module) -> str | None:
        """Why `module` cannot become this layer, or None when it can."""
        if (reason := super().reason_against(module)) is not None:
            return reason
        wide = weight_matrix(module).shape[1]
        return f"it has {wide} in_features; sparse int8 takes {MAX_IN_FEATURES}" if wide > MAX_IN_FEATURES else None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A layer without weights; raises ValueError when the config is not valid."""
        settings = _checked(config)
        return cls(device="cpu", **{**settings, "dtype": DTYPES[settings["dtype"]]})

    @classmethod
    def expected_tensors(cls, config: Mapping[str, Any]) -> Expected:
        """Names, dtypes and shapes of the tensors that `fill` takes; raises ValueError like from_config."""
        settings = _checked(config)
        dense = {key: value for key, value in settings.items() if key not in ("pattern", "kept")}
        expected = Int8Linear.expected_tensors(dense)
        return {**expected, **cls._expected_blocks("weight_q", torch.int8, settings)}

    def _pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        input_scale = self._smoothing(tensors)
        if "weight" in tensors:
            q, scale = quantize_s8(self._checked_float_weight(tensors["weight"]), input_scale)
            self.grid.check(q)
        else:
            q, scale = expand(tensors["weight_mask"], tensors["weight_q"], self.grid), tensors["weight_scale"]
        return pack_sparse_s8(q, scale, input_scale)

    def _smoothing(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        input_scale = tensors.get("input_scale")
        if input_scale is None and self.smoothed and "weight" in tensors:
            if not self.has_weights:
                raise ValueError("a float weight does not say how to smooth; load the quantised tensors")
            input_scale = unpack_sparse_s8(self.packed)[2]
        return None if input_scale is None else checked_input_scale(input_scale, self.in_features)

    def _unpack(self) -> dict[str, Tensor]:
        q, scale, input_scale = unpack_sparse_s8(self.packed)
        mask, values = compact(q, self.grid)
        smoothing = {} if input_scale is None else {"input_scale": input_scale}
        return {"weight_mask": mask, "weight_q": values, "weight_scale": scale, **smoothing}


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = checked_config(config, sparse=True)
    if settings["in_features"] > MAX_IN_FEATURES:
        raise ValueError(f"in_features: expected at most {MAX_IN_FEATURES}, got {settings['in_features']}")
    return settings

"""nn.Linear with weights that are codes of 2 to 8 bits into a small table of integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tersor._native import core
from tersor.nn.codebook_config import TABLES, check_codes_settings, checked_codes_config, expected_codes
from tersor.nn.codebook_packed import dequantize_codes, pack_bits, pack_codes, unpack_bits, unpack_codes
from tersor.nn.float_linear import is_conv1d
from tersor.nn.linear_config import check_settings, checked_input_scale
from tersor.nn.packed_layer import DTYPE_NAMES, DTYPES, Expected
from tersor.nn.packed_linear import PackedLinear
from tersor.nn.registry import register
from tersor.ops import ACTIVATIONS
from tersor.quantize.codebooks import Codes, make_codebook


@register
class CodebookLinear(PackedLinear):
    """y = activation(x W^T + bias) with W[o, i] = table[codes[o, i]] * scale[o, i // group_size], x in 8 bits.

    Input, output, gradients and errors are those of Int8Linear. Codes of 2 to 4 bits stay codes in memory, half a byte
    a weight, and are looked up as they are multiplied; those of 5 to 8 bits become int8 values. The state dict holds
    weight_codes uint8 [out_features, bytes] (the codes of a row as bits, one behind the other), weight_table int8
    [entries], [out_features, entries] or [out_features, groups, entries], weight_scale float32 [out_features, groups],
    bias and, in a smoothed layer, input_scale. docs/codebook.md has the rule, docs/kernels.md the bits.
    """

    kind = "codebook_linear"
    _op_name = "linear_lut4"
    _dequantize = dequantize_codes._opoverload
    optional = ("input_scale",)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bits: int = 4,
        group_size: int = 0,
        tables: str = "one",
        codebook: str = "linear",
        activation: str = "none",
        x_scale: float = 0.0,
        x_zero_point: int = 0,
        smoothed: bool = False,
    ) -> None:
        """A layer without weights: use from_float or from_codes, or load_state_dict afterwards.

        `group_size` 0: a row has one scale. `tables`: "one", or a table for each "row" or "group". `codebook`: what a
        float weight is quantised by when one is loaded, "" where that is not known. Others: as Int8Linear has them.
        """
        check_settings(in_features, out_features, activation, x_scale, x_zero_point)
        check_codes_settings(bits, group_size, tables, codebook)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.bits, self.group_size, self.tables, self.codebook = bits, group_size, tables, codebook
        self._activation_code = ACTIVATIONS[activation]
        self.x_scale, self.x_zero_point, self.smoothed = float(x_scale), x_zero_point, smoothed

    @property
    def kernel(self) -> str:
        """The id of the kernel that looks codes up; raises TersorError where there are no weights."""
        return str(core().inspect_lut4(self.packed.numpy())["kernel"])

    @classmethod
    def from_float(
        cls,
        module: nn.Module,
        *,
        bits: int = 4,
        codebook: str = "linear",
        group_size: int | None = None,
        input_scale: Tensor | None = None,
        **settings: Any,
    ) -> Self:
        """Quantises an nn.Linear with a code book of tersor.quantize.codebooks.CODEBOOKS.

        `group_size`: weights of a row under one scale, None for all. `input_scale` and the other settings (activation,
        x_scale, x_zero_point) are those of Int8Linear.from_float.

        Raises:
            ValueError: with reason_against(module), an unknown code book, or bits or groups that it does not have.
        """
        if (reason := cls.reason_against(module)) is not None:
            raise ValueError(reason)
        weight: Tensor = module.weight.detach().float()  # type: ignore[operator]
        if input_scale is not None:
            weight = weight / checked_input_scale(input_scale, weight.shape[1])
        codes = make_codebook(codebook).fit(weight, bits, group_size)
        return cls.from_codes(module, codes, codebook=codebook, input_scale=input_scale, **settings)

    @classmethod
    def from_codes(
        cls,
        module: nn.Module,
        codes: Codes,
        *,
        codebook: str = "",
        input_scale: Tensor | None = None,
        **settings: Any,
    ) -> Self:
        """The layer with exactly these codes in place of the weight of an nn.Linear; the bias is copied.

        Raises:
            ValueError: with reason_against(module), or codes that break their rules or are not those of such a weight.
        """
        codes.check()
        shape = tuple(getattr(module, "weight", torch.empty(0)).shape)
        if cls.reason_against(module) is None and tuple(codes.codes.shape) != shape:
            raise ValueError(f"codes: expected the shape of the weight, {list(shape)}, got {list(codes.codes.shape)}")
        group_size = 0 if codes.group_size >= codes.codes.shape[1] else codes.group_size
        described = {"bits": codes.bits, "group_size": group_size, "tables": TABLES[codes.table.dim() - 1]}
        tensors = {"codes": codes.codes, "weight_table": codes.table, "weight_scale": codes.scale}
        if input_scale is not None:
            tensors["input_scale"] = input_scale
        described.update(codebook=codebook, smoothed=input_scale is not None)
        return cls._convert(module, {**settings, **described}, tensors)

    @classmethod
    def reason_against(cls, module: nn.Module) -> str | None:
        """Why `module` cannot become this layer, or None when it can."""
        if is_conv1d(module):
            return "the Conv1D of transformers has no code book layer"
        return super().reason_against(module)

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
            "bits": self.bits,
            "group_size": self.group_size,
            "tables": self.tables,
            "codebook": self.codebook,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A layer without weights; raises ValueError when the config is not valid."""
        settings = checked_codes_config(config)
        return cls(device="cpu", **{**settings, "dtype": DTYPES[settings["dtype"]]})

    @classmethod
    def expected_tensors(cls, config: Mapping[str, Any]) -> Expected:
        """Names, dtypes and shapes of the tensors that `fill` takes; raises ValueError like from_config."""
        return expected_codes(checked_codes_config(config))

    def _pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        input_scale = tensors.get("input_scale")
        if "weight_table" not in tensors:
            return self._pack_float(self._checked_float_weight(tensors["weight"]))
        codes = tensors.get("codes")
        if codes is None:
            codes = unpack_bits(tensors["weight_codes"], self.in_features, self.bits)
        group_size = self.group_size or self.in_features
        if input_scale is not None:
            input_scale = checked_input_scale(input_scale, self.in_features)
        return pack_codes(
            Codes(codes, tensors["weight_table"], tensors["weight_scale"], self.bits, group_size), input_scale
        )

    def _pack_float(self, weight: Tensor) -> Tensor:
        if self.smoothed and not self.has_weights:
            raise ValueError("a float weight does not say how to smooth; load the quantised tensors")
        if not self.codebook:
            raise ValueError("a float weight does not say which code book; load the codes")
        input_scale = unpack_codes(self.packed)[1] if self.smoothed else None
        scaled = weight.float() if input_scale is None else weight.float() / input_scale
        codes = make_codebook(self.codebook).fit(scaled, self.bits, self.group_size or None)
        return pack_codes(codes, input_scale)

    def _unpack(self) -> dict[str, Tensor]:
        codes, input_scale = unpack_codes(self.packed)
        tensors = {"weight_codes": pack_bits(codes.codes, self.bits), "weight_table": codes.table}
        tensors["weight_scale"] = codes.scale
        return tensors if input_scale is None else {**tensors, "input_scale": input_scale}

    def extra_repr(self) -> str:
        """Adds how the weights are coded and x is quantised to nn.Linear's line."""
        how = "dynamic" if self.x_scale == 0 else f"static({self.x_scale:.6g}, {self.x_zero_point})"
        how += ", smoothed" if self.smoothed else ""
        groups = f" in groups of {self.group_size}" if self.group_size else ""
        fused = "" if self.activation == "none" else f", activation={self.activation}"
        book = f" {self.codebook}" if self.codebook else ""
        return f"{super().extra_repr()}, weights={self.bits}-bit{book} codes{groups}, activations={how}{fused}"

"""What Int8GRU, Int8LSTM and their cells share: weights, description, and one native call per layer and direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tersor._native import core
from tersor.errors import TersorError
from tersor.nn.packed_layer import DTYPE_NAMES, DTYPES, Expected, PackedLayer
from tersor.nn.recurrent_config import (
    checked_recurrent,
    expected_recurrent,
    place_problem,
    recurrent_problem,
    suffixes_of,
)
from tersor.nn.recurrent_packed import block_offsets, pack_recurrent, unpack_recurrent
from tersor.ops import RECURRENT_S8
from tersor.quantize import quantize_s8

_NOTHING = torch.empty(0)  # a GRU has no cell


class RecurrentLayer(PackedLayer):
    """Int8 weights, one scale per gate and unit; input and state are quantised to 8 bits row by row on the fly."""

    cell: ClassVar[str]  # "gru" or "lstm"
    float_kind: ClassVar[type[nn.Module]]
    is_cell: ClassVar[bool] = False
    _transient = PackedLayer._transient | {"_offsets"}

    def __init__(self, config: Mapping[str, Any], device: torch.device | str | None) -> None:
        nn.Module.__init__(self)
        for name, value in checked_recurrent(config, self.is_cell).items():
            if name != "dtype":
                setattr(self, name, value)
        self._start_empty(DTYPES[config["dtype"]], device)

    def config(self) -> dict[str, Any]:
        """What from_config needs, JSON-able."""
        names = ["input_size", "hidden_size", "bias"]
        names += [] if self.is_cell else ["num_layers", "batch_first", "dropout", "bidirectional"]
        return {**{name: getattr(self, name) for name in names}, "dtype": DTYPE_NAMES[self.dtype]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A layer without weights; raises ValueError when the config is not valid."""
        settings = checked_recurrent(config, cls.is_cell)
        return cls(device="cpu", **{**settings, "dtype": DTYPES[settings["dtype"]]})

    @classmethod
    def expected_tensors(cls, config: Mapping[str, Any]) -> Expected:
        """Names, dtypes and shapes of the tensors that `fill` takes; raises ValueError like from_config."""
        return expected_recurrent(cls.cell, checked_recurrent(config, cls.is_cell))

    @classmethod
    def place_problem(cls, config: Mapping[str, Any], module: nn.Module) -> str | None:
        """Why a layer of this valid config can't take the place of `module`, or None when it can."""
        return place_problem(config, module, cls.float_kind)

    @classmethod
    def reason_against(cls, module: nn.Module) -> str | None:
        """Why `module` cannot become this layer, or None when it can."""
        return recurrent_problem(module, cls.float_kind)

    @classmethod
    def from_float(cls, module: nn.Module) -> Self:
        """Quantises a float layer; biases stay float32. `module` is not changed.

        Raises:
            ValueError: with reason_against(module).
        """
        if (reason := cls.reason_against(module)) is not None:
            raise ValueError(reason)
        names = ["input_size", "hidden_size", "bias"]
        names += [] if cls.is_cell else ["num_layers", "batch_first", "dropout", "bidirectional"]
        config = {name: getattr(module, name) for name in names}
        first = next(module.parameters())
        layer = cls.from_config({**config, "dtype": DTYPE_NAMES[first.dtype]})
        tensors: dict[str, Tensor] = {}
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if name.startswith("weight"):
                tensors[f"{name}_q"], tensors[f"{name}_scale"] = quantize_s8(parameter)
            else:
                tensors[name] = parameter.detach().float()
        layer.fill(tensors)
        layer.training = module.training
        return layer

    def to_float(self) -> nn.Module:
        """The float layer with the dequantised weights."""
        config = {name: value for name, value in self.config().items() if name != "dtype"}
        module = self.float_kind(**config, dtype=self.dtype)
        canonical = self.canonical_tensors()
        with torch.no_grad():
            for name, parameter in module.named_parameters(recurse=False):
                if name.startswith("weight"):
                    parameter.copy_(canonical[f"{name}_q"].float() * canonical[f"{name}_scale"][:, None])
                else:
                    parameter.copy_(canonical[name])
        return module.train(self.training)

    @property
    def kernel(self) -> str:
        """The id of the kernel that the packed weights are for; raises TersorError where there are no weights."""
        return str(core().inspect_recurrent(self.packed.numpy())["kernel"])

    def _pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        if "weight" in tensors:
            raise ValueError("expected the quantised tensors; make the layer from a float one with from_float")
        return pack_recurrent(self.cell, tensors, suffixes_of(self.config()))

    def _unpack(self) -> dict[str, Tensor]:
        return unpack_recurrent(self.packed, suffixes_of(self.config()))

    def _take_packed(self, packed: Tensor) -> None:
        self.__dict__.pop("_offsets", None)
        super()._take_packed(packed)

    def _direction(
        self, index: int, x: Tensor, sizes: Tensor, state: Tensor, cell: Tensor, reverse: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer in one direction: outputs [rows, hidden], last state and cell [batch, hidden]."""
        offsets = self.__dict__.get("_offsets")
        if offsets is None:
            offsets = self.__dict__["_offsets"] = block_offsets(self.packed)
        cell = cell if self.cell == "lstm" else _NOTHING
        y, last, last_cell = RECURRENT_S8(x, self.packed, offsets[index], sizes, state, cell, int(reverse))
        return y, last, last_cell

    def _check_input(self, x: object, dims: tuple[int, ...]) -> Tensor:
        """x, or TersorError: another class, dtype, device or width, gradients wanted, or no weights."""
        problem = None
        if not self.has_weights:
            problem = "the layer has no weights yet; load a state dict first"
        elif not isinstance(x, Tensor) or x.layout != torch.strided or x.device.type != "cpu":
            problem = f"expected a dense tensor on cpu, got {getattr(x, 'device', type(x).__name__)}"
        elif x.dtype not in DTYPE_NAMES:
            problem = f"expected float32, bfloat16 or float16, got {x.dtype}; convert it with x.float()"
        elif x.dim() not in dims or x.shape[-1] != self.input_size:
            problem = f"expected {' or '.join(map(str, dims))} dimensions, the last of {self.input_size} values, got "
            problem += f"{list(x.shape)}"
        elif torch.is_grad_enabled() and x.requires_grad:
            problem = "it has no gradients: call it under torch.no_grad(), or train the float layer"
        if problem is not None:
            raise TersorError(f"{self._label()}: {problem}")
        assert isinstance(x, Tensor)
        return x

    def _check_state(self, state: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
        """The state in float32; TersorError where it has another shape."""
        if not isinstance(state, Tensor) or tuple(state.shape) != shape:
            got = list(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise TersorError(f"{self._label()}: {name}: expected {list(shape)}, got {got}")
        return state.detach().float()

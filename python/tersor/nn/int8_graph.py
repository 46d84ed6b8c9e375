"""A part of a convolutional network that runs on bytes from end to end, in one native call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tersor._native import core
from tersor.errors import TersorError
from tersor.nn.int8_graph_config import (
    ACTIVATIONS,
    KINDS,
    POOLINGS,
    checked_graph,
    conv_nodes,
    graph_tensors,
    output_extents,
)
from tersor.nn.packed_layer import DTYPE_NAMES, DTYPES, Expected, PackedLayer
from tersor.nn.registry import register
from tersor.ops import GRAPH_S8
from tersor.quantize import quantize_s8

_NOTHING = torch.empty(0)


@register
class Int8Graph(PackedLayer):
    """Convolutions, poolings and additions on 8-bit tensors between a float input and a float result.

    Input: [n, channels, height, width] in float32, bfloat16 or float16, any memory format; output: [n, channels,
    height, width] channels last, or [n, channels], in the dtype of the input. A picture that holds NaN or infinity
    gives NaN everywhere. There are no gradients. The state dict holds, for each convolution, N_weight_q int8
    [out, in / groups, kernel_h, kernel_w], N_weight_scale float32 [out] and N_bias float32 [out].
    `tersor.nn.int8_graph_config.checked_graph` describes the configuration, docs/conv.md the numbers.

    Raises (forward):
        TersorError: x has another shape or dtype, or no weights were loaded.
    """

    kind = "int8_graph"

    def __init__(self, config: Mapping[str, Any]) -> None:
        """A graph without weights: use fill, or load_state_dict afterwards."""
        super().__init__()
        self._config = checked_graph(config)
        self._start_empty(DTYPES[self._config["dtype"]], "cpu")

    def forward(self, input: Tensor) -> Tensor:
        """[n, channels, height, width] to [n, channels, height, width] or [n, channels]."""
        if not isinstance(input, Tensor) or input.dim() != 4 or input.dtype not in DTYPE_NAMES:
            raise TersorError(f"{self._label()}: {self._input_problem(input)}")
        channels, height, width = output_extents(self._config, input.shape[2], input.shape[3])
        if self._config["flat"]:
            height = width = 0
        x = input if input.dtype == torch.float32 else input.float()
        try:
            y: Tensor = GRAPH_S8(x, self._buffers["packed"], _NOTHING, channels, height, width)
        except RuntimeError as error:
            problem = self._input_problem(input)
            if problem is None:
                raise
            raise TersorError(f"{self._label()}: {problem}") from error
        return y if input.dtype == torch.float32 else y.to(input.dtype)

    @property
    def kernel(self) -> str:
        """The id of the kernel of the largest convolution; raises TersorError where there are no weights."""
        if not self.has_weights:
            raise TersorError(f"{self._label()} has no weights yet: load a state dict first")
        return str(core().graph_kernel_s8(self.packed.numpy()))

    def peak_bytes(self, height: int, width: int) -> int:
        """Memory for the tensors of one picture while it runs, beside input, result and packed weights."""
        return int(core().graph_arena_bytes_s8(self.packed.numpy(), height, width))

    @classmethod
    def reason_against(cls, module: nn.Module) -> str | None:
        """Graphs are built from traced networks, see tersor.convnet."""
        if isinstance(module, nn.Conv2d):
            return None
        return f"{type(module).__name__} is not an nn.Conv2d; tersor.convnet makes graphs of networks"

    def config(self) -> dict[str, Any]:
        """What from_config needs, JSON-able."""
        return {**self._config, "dtype": DTYPE_NAMES[self.dtype]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A graph without weights; raises ValueError when the config is not valid."""
        return cls(config)

    @classmethod
    def expected_tensors(cls, config: Mapping[str, Any]) -> Expected:
        """Names, dtypes and shapes of the tensors that `fill` takes; raises ValueError like from_config."""
        return graph_tensors(checked_graph(config))

    def _pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        nodes = []
        for position, node in enumerate(self._config["nodes"]):
            native = {
                "kind": KINDS.index(node["kind"]),
                "input": node["input"],
                "other": node["other"],
                "activation": ACTIVATIONS.index(node["activation"]),
                "pooling": POOLINGS.index(node["pooling"]),
                "whole": node["whole"],
                "as": tuple(node["as"]),
                "shape": node["shape"],
            }
            if node["kind"] == "conv":
                weight = tensors[f"{position}_weight_q"].permute(0, 2, 3, 1).contiguous()
                native["weight"] = weight.numpy()
                native["scale"] = tensors[f"{position}_weight_scale"].numpy()
                bias = tensors.get(f"{position}_bias")
                native["bias"] = None if bias is None else bias.detach().numpy()
            nodes.append(native)
        packed = core().pack_graph_s8(self._config["channels"], tuple(self._config["input"]), nodes)
        return torch.from_numpy(packed)

    def _unpack(self) -> dict[str, Tensor]:
        tensors = {}
        for position, node in conv_nodes(self._config):
            q, scale, bias = core().unpack_graph_conv_s8(self.packed.numpy(), position, node["shape"])
            tensors[f"{position}_weight_q"] = torch.from_numpy(q).permute(0, 3, 1, 2).contiguous()
            tensors[f"{position}_weight_scale"] = torch.from_numpy(scale)
            if node["bias"]:
                tensors[f"{position}_bias"] = torch.from_numpy(bias)
        return tensors

    def _input_problem(self, x: object) -> str | None:
        if not self.has_weights:
            return "the layer has no weights yet; load a state dict first"
        channels = self._config["channels"]
        if not isinstance(x, Tensor):
            return f"expected a tensor [n, {channels}, height, width], got {type(x).__name__}"
        if x.layout != torch.strided or x.device.type != "cpu":
            return f"expected a dense tensor on cpu, got a {x.layout} one on {x.device}; convert it or move it there"
        if x.dtype not in DTYPE_NAMES:
            return f"expected x in {', '.join(DTYPES)}, got {x.dtype}; convert it with x.float()"
        if x.dim() != 4 or x.shape[1] != channels:
            return f"expected x [n, {channels}, height, width], got {list(x.shape)}"
        return None

    def extra_repr(self) -> str:
        """What it is made of."""
        kinds = [node["kind"] for node in self._config["nodes"]]
        counted = ", ".join(f"{kind}={kinds.count(kind)}" for kind in KINDS if kind in kinds)
        return f"channels={self._config['channels']}, {counted}, weights=int8, activations=static"


def quantized_filter(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Float filters [out, ...] to int8 of the same shape and float32 scales [out]."""
    q, scale = quantize_s8(weight.detach().float().flatten(1))
    return q.reshape(weight.shape), scale

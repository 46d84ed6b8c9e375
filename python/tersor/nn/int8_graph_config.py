"""The description of an int8 graph, as it stands in a file, and its checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from tersor.nn.packed_layer import DTYPES, Expected

SHAPE = (
    "in_channels",
    "out_channels",
    "groups",
    "kernel_h",
    "kernel_w",
    "stride_h",
    "stride_w",
    "dilation_h",
    "dilation_w",
    "pad_top",
    "pad_left",
    "pad_bottom",
    "pad_right",
)
"""The 13 integers of a convolution's or pooling's shape, in the order of csrc/include/tersor/conv_s8.h."""

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "relu6", "hard_swish")
"""By their codes in csrc/include/tersor/conv_s8.h."""

KINDS = ("conv", "pool", "add")
POOLINGS = ("max", "average", "average_of_inside")

_MAX_EXTENT = 1 << 24
_MAX_NODES = 1 << 16
_NODE_KEYS = {"kind", "input", "other", "activation", "pooling", "whole", "as", "shape", "bias"}


def checked_graph(config: Any) -> dict[str, Any]:
    """A copy of `config`; raises ValueError when a key is missing, unexpected or holds a value that is not valid.

    `{"channels", "input": [scale, zero_point], "nodes": [...], "flat", "dtype"}`: a graph over pictures of so many
    channels, quantised with the input's scale, 0 meaning each by its own range. Values are counted: 0 is the input,
    i + 1 what node i gives; the last node's is the result, `flat` as [n, channels].
    A node: `{"kind", "input", "other", "activation", "pooling", "whole", "as": [scale, zero_point], "shape", "bias"}`.
    """
    keys = {"channels", "input", "nodes", "flat", "dtype"}
    if not isinstance(config, Mapping) or set(config) != keys:
        got = sorted(map(str, config)) if isinstance(config, Mapping) else type(config).__name__
        raise ValueError(f"config: expected exactly {', '.join(sorted(keys))}, got {got}")
    _integer("channels", config["channels"], 1, _MAX_EXTENT)
    _quantized("input", config["input"], dynamic=True)
    _boolean("flat", config["flat"])
    if not isinstance(config["dtype"], str) or config["dtype"] not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {config['dtype']!r}")
    nodes = config["nodes"]
    if not isinstance(nodes, list) or not 0 < len(nodes) <= _MAX_NODES:
        raise ValueError(f"nodes: expected a list of 1 to {_MAX_NODES}")
    for position, node in enumerate(nodes):
        _check_node(position, node)
    return {**config, "nodes": [dict(node) for node in nodes]}


def graph_tensors(config: Mapping[str, Any]) -> Expected:
    """Names, dtypes and shapes of the tensors of a checked config."""
    expected: Expected = {}
    for position, node in conv_nodes(config):
        shape = dict(zip(SHAPE, node["shape"], strict=True))
        out, groups = shape["out_channels"], shape["groups"]
        kernel = (shape["kernel_h"], shape["kernel_w"])
        expected[f"{position}_weight_q"] = (torch.int8, (out, shape["in_channels"] // groups, *kernel))
        expected[f"{position}_weight_scale"] = (torch.float32, (out,))
        if node["bias"]:
            expected[f"{position}_bias"] = (torch.float32, (out,))
    return expected


def conv_nodes(config: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The convolutions of a graph with their positions."""
    return [(position, node) for position, node in enumerate(config["nodes"]) if node["kind"] == "conv"]


def output_extents(config: Mapping[str, Any], height: int, width: int) -> tuple[int, int, int]:
    """Channels, height and width of the result for a picture; what the native op computes, for tracers."""
    extents = [(config["channels"], height, width)]
    for node in config["nodes"]:
        channels, rows, columns = extents[node["input"]]
        s = dict(zip(SHAPE, node["shape"], strict=True))
        if node["kind"] == "conv":
            channels = s["out_channels"]
        if node["kind"] == "pool" and node["whole"]:
            rows = columns = 1
        elif node["kind"] != "add":
            rows = _out(rows, s["pad_top"] + s["pad_bottom"], s["dilation_h"], s["kernel_h"], s["stride_h"])
            columns = _out(columns, s["pad_left"] + s["pad_right"], s["dilation_w"], s["kernel_w"], s["stride_w"])
        extents.append((channels, rows, columns))
    return extents[-1]


def _out(size: int, padding: int, dilation: int, kernel: int, stride: int) -> int:
    return (size + padding - dilation * (kernel - 1) - 1) // stride + 1


def _check_node(position: int, node: Any) -> None:
    where = f"node {position}"
    if not isinstance(node, Mapping) or set(node) != _NODE_KEYS:
        raise ValueError(f"{where}: expected exactly {', '.join(sorted(_NODE_KEYS))}")
    for name, choices in (("kind", KINDS), ("activation", ACTIVATIONS), ("pooling", POOLINGS)):
        if not isinstance(node[name], str) or node[name] not in choices:
            raise ValueError(f"{where}: {name}: expected one of {', '.join(choices)}, got {node[name]!r}")
    _integer(f"{where}: input", node["input"], 0, position)
    _integer(f"{where}: other", node["other"], -1, position)
    _boolean(f"{where}: whole", node["whole"])
    _boolean(f"{where}: bias", node["bias"])
    _quantized(f"{where}: as", node["as"])
    shape = node["shape"]
    if not isinstance(shape, list) or len(shape) != len(SHAPE):
        raise ValueError(f"{where}: shape: expected {len(SHAPE)} integers")
    for name, value in zip(SHAPE, shape, strict=True):
        _integer(f"{where}: {name}", value, 0 if name.startswith("pad") else 1, _MAX_EXTENT)
    if shape[0] % shape[2] or shape[1] % shape[2]:
        raise ValueError(f"{where}: groups: expected a divisor of the channels, got {shape[2]}")
    if shape[0] // shape[2] * shape[3] * shape[4] > 65536:
        raise ValueError(f"{where}: expected filters of at most 65536 values")


def _integer(name: str, value: Any, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name}: expected an integer in [{least}, {most}], got {value!r}")


def _boolean(name: str, value: Any) -> None:
    if type(value) is not bool:
        raise ValueError(f"{name}: expected true or false, got {value!r}")


def _quantized(name: str, value: Any, dynamic: bool = False) -> None:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{name}: expected [scale, zero_point], got {value!r}")
    scale, info = value[0], torch.finfo(torch.float32)
    number = isinstance(scale, (int, float)) and not isinstance(scale, bool) and math.isfinite(scale)
    if not number or not (info.tiny <= scale <= info.max or (dynamic and scale == 0)):
        raise ValueError(f"{name}: expected a positive normal float32 as the scale, got {scale!r}")
    _integer(f"{name}: zero point", value[1], 0, 255)

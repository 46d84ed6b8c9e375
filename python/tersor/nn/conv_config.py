"""The description of a convolution layer, as it stands in a file, its checks, and what the native op wants of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tersor._native import core
from tersor.nn.int8_graph_config import checked_graph
from tersor.nn.packed_layer import DTYPE_NAMES, DTYPES

_KEYS = {
    "in_channels",
    "out_channels",
    "groups",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "bias",
    "dtype",
    "x_scale",
    "x_zero_point",
}


def checked_conv(config: Any, dimensions: int) -> dict[str, Any]:
    """A copy of `config`; raises ValueError when a key is missing, unexpected or holds a value that is not valid."""
    if not isinstance(config, Mapping) or set(config) != _KEYS:
        got = sorted(map(str, config)) if isinstance(config, Mapping) else type(config).__name__
        raise ValueError(f"config: expected exactly {', '.join(sorted(_KEYS))}, got {got}")
    for name in ("kernel_size", "stride", "dilation", "padding"):
        value = config[name]
        if name == "padding" and value in ("same", "valid"):
            continue
        if not isinstance(value, list) or len(value) != dimensions:
            raise ValueError(f"{name}: expected a list of {dimensions} integers, got {value!r}")
    if config["padding"] == "same" and any(stride != 1 for stride in config["stride"]):
        raise ValueError("padding: expected numbers where the stride is not 1, got 'same'")
    if type(config["bias"]) is not bool:
        raise ValueError(f"bias: expected true or false, got {config['bias']!r}")
    # The rest are the laws of a graph of one node.
    for name in ("in_channels", "out_channels", "groups"):
        if type(config[name]) is not int:
            raise ValueError(f"{name}: expected an integer, got {config[name]!r}")
    checked_graph(
        _graph_config(conv_shape(config, dimensions), config["x_scale"], config["x_zero_point"], config["dtype"])
    )
    return dict(config)


def conv_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a float convolution layer for a checked config."""
    padding = config["padding"]
    tuples = {name: tuple(config[name]) for name in ("kernel_size", "stride", "dilation")}
    return {
        **{name: config[name] for name in ("in_channels", "out_channels", "groups")},
        **tuples,
        "padding": padding if isinstance(padding, str) else tuple(padding),
        "transposed": False,
        "output_padding": (0,) * len(tuples["stride"]),
        "padding_mode": "zeros",
    }


def conv_shape(config: Mapping[str, Any], dimensions: int) -> list[int]:
    """The 13 integers of `tersor.nn.int8_graph_config.SHAPE`; one dimension is a height of 1."""
    one = [1] * (2 - dimensions)
    kernel, stride, dilation = ([*one, *config[name]] for name in ("kernel_size", "stride", "dilation"))
    padding = config["padding"]
    if padding == "same":  # what is odd goes to the end
        total = [d * (k - 1) if type(d) is type(k) is int else 0 for d, k in zip(dilation, kernel, strict=True)]
        before, after = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        before = after = [0, 0] if padding == "valid" else [*[0] * (2 - dimensions), *padding]
    channels = [config[name] for name in ("in_channels", "out_channels", "groups")]
    return [*channels, *kernel, *stride, *dilation, *before, *after]


def conv_extents(shape: list[int], height: int, width: int) -> tuple[int, int]:
    """Height and width of the result."""
    _, _, _, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, top, left, bottom, right = shape
    return (
        (height + top + bottom - dilation_h * (kernel_h - 1) - 1) // stride_h + 1,
        (width + left + right - dilation_w * (kernel_w - 1) - 1) // stride_w + 1,
    )


def one_conv_graph(shape: list[int], q: Tensor, scale: Tensor, x_scale: float, x_zero_point: int) -> Tensor:
    """The packed graph of one convolution without a bias, for q int8 [out, in / groups, (kernel_h,) kernel_w]."""
    weight = q.reshape(*q.shape[:2], shape[3], shape[4]).permute(0, 2, 3, 1).contiguous()
    node = {
        "kind": 0,
        "input": 0,
        "other": -1,
        "activation": 0,
        "pooling": 0,
        "whole": False,
        "as": (1.0, 0),
        "shape": shape,
        "weight": weight.numpy(),
        "scale": scale.contiguous().numpy(),
        "bias": None,
    }
    return torch.from_numpy(core().pack_graph_s8(shape[0], (x_scale, x_zero_point), [node]))


def conv_problem(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """Why a float layer cannot become an int8 one, or None when it can."""
    if not isinstance(module, kind):
        return f"{type(module).__name__} is not an nn.{kind.__name__}"
    if type(module).forward is not kind.forward or "forward" in module.__dict__:
        return f"{type(module).__name__} has a forward of its own"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"its padding_mode is {module.padding_mode!r}; only zeros are exact"
    weight = module._parameters.get("weight")
    if weight is None or isinstance(weight, nn.UninitializedParameter):
        return "it has no weight of its own yet"
    if weight.dtype not in DTYPE_NAMES or weight.device.type != "cpu":
        return f"its weight is {weight.dtype} on {weight.device}; supported: {', '.join(DTYPES)} on cpu"
    if weight[0].numel() > 65536:
        return f"its filters have {weight[0].numel()} values; int32 sums are exact up to 65536"
    return None


def float_conv(kind: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    """A float layer on meta for a checked config."""
    padding = config["padding"]
    return kind(
        config["in_channels"],
        config["out_channels"],
        tuple(config["kernel_size"]),
        stride=tuple(config["stride"]),
        padding=padding if isinstance(padding, str) else tuple(padding),
        dilation=tuple(config["dilation"]),
        groups=config["groups"],
        bias=config["bias"],
        device="meta",
        dtype=DTYPES[config["dtype"]],
    )


def _graph_config(shape: list[int], x_scale: Any, x_zero_point: Any, dtype: Any) -> dict[str, Any]:
    node = {
        "kind": "conv",
        "input": 0,
        "other": -1,
        "activation": "none",
        "pooling": "max",
        "whole": False,
        "as": [1.0, 0],
        "shape": shape,
        "bias": False,
    }
    return {"channels": shape[0], "input": [x_scale, x_zero_point], "nodes": [node], "flat": False, "dtype": dtype}

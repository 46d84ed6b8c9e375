"""What a node of a traced network computes, where an int8 graph can compute it too."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from tersor.convnet.operations import Activation, Add, Conv, Flatten, Linear, Norm, Op, Pad, Pads, Pool, Same


def recognise(node: fx.Node, modules: dict[str, nn.Module], model: nn.Module) -> tuple[Op, list[fx.Node]] | None:
    """The operation of a node and the nodes that it reads, or None where an int8 graph has no such operation."""
    tensors = [item for item in (*node.args, *node.kwargs.values()) if isinstance(item, fx.Node)]
    op: Op | None = None
    if node.op == "call_module":
        module = modules[str(node.target)]
        find = _MODULES.get(type(module))
        op = find(module) if find is not None and len(node.args) == 1 and not node.kwargs else None
    elif node.op == "call_function" and node.target in _FUNCTIONS:
        op = _FUNCTIONS[node.target](Call(node, model))
        tensors = tensors if isinstance(op, Add) else tensors[:1]
    elif node.op == "call_method" and node.target in _METHODS:
        op = _METHODS[str(node.target)](Call(node, model))
        tensors = tensors if isinstance(op, Add) else tensors[:1]
    return None if op is None else (op, tensors)


class Call:
    """The arguments of a function call, by place or name."""

    def __init__(self, node: fx.Node, model: nn.Module) -> None:
        self.node, self.model = node, model

    def __call__(self, place: int, name: str, default: Any = None) -> Any:
        """An argument; a tensor that belongs to the model where it is one."""
        value = self.node.args[place] if place < len(self.node.args) else self.node.kwargs.get(name, default)
        if isinstance(value, fx.Node) and value.op == "get_attr":
            found: Any = self.model
            for part in str(value.target).split("."):
                found = getattr(found, part)
            return found
        return value


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))
    return int(first), int(second)


def _pads(padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]) -> Pads:
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2
    rows, columns = (0, 0) if padding == "valid" else _pair(padding)
    return rows, columns, rows, columns


def _conv(weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any) -> Conv | None:
    if not isinstance(weight, Tensor) or weight.dim() != 4 or not (bias is None or isinstance(bias, Tensor)):
        return None
    if weight.dtype != torch.float32 or weight[0].numel() > 65536:
        return None
    kernel = (weight.shape[2], weight.shape[3])
    pads = _pads(padding, kernel, _pair(dilation))
    return Conv(weight.detach(), bias, _pair(stride), pads, _pair(dilation), int(groups))


def _conv_module(module: Any) -> Conv | None:
    if module.padding_mode != "zeros":
        return None
    return _conv(module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups)


def _conv_call(call: Call) -> Conv | None:
    return _conv(
        call(1, "weight"),
        call(2, "bias"),
        call(3, "stride", 1),
        call(4, "padding", 0),
        call(5, "dilation", 1),
        call(6, "groups", 1),
    )


def _linear(weight: Any, bias: Any) -> Linear | None:
    if not isinstance(weight, Tensor) or weight.dtype != torch.float32 or weight.shape[1] > 65536:
        return None
    return Linear(weight.detach(), bias)


def _norm(module: Any) -> Norm | None:
    if module.training or module.running_mean is None or module.running_var is None:
        return None
    mean, var = module.running_mean.double(), module.running_var.double()
    weight = torch.ones_like(mean) if module.weight is None else module.weight.detach().double()
    shift = torch.zeros_like(mean) if module.bias is None else module.bias.detach().double()
    scale = weight / torch.sqrt(var + module.eps)
    return Norm(scale, shift - mean * scale)


def _pad(pads: Any, mode: Any = "constant", value: Any = 0) -> Pad | None:
    if (
        mode != "constant"
        or value not in (None, 0)
        or len(pads) > 4
        or any(not isinstance(p, int) or p < 0 for p in pads)
    ):
        return None
    left, right, top, bottom = [*pads, 0, 0, 0][:4]
    return Pad((top, left, bottom, right))


def _pool(pooling: str, kernel: Any, stride: Any, padding: Any, plain: bool) -> Pool | None:
    pads = _pads(padding, (0, 0), (1, 1))
    kernel = _pair(kernel)
    if not plain or pads[0] >= kernel[0] or pads[1] >= kernel[1]:
        return None
    return Pool(pooling, False, kernel, _pair(stride if stride else kernel), pads)


def _max_pool(module: Any) -> Pool | None:
    plain = _pair(module.dilation) == (1, 1) and not module.ceil_mode and not module.return_indices
    return _pool("max", module.kernel_size, module.stride, module.padding, plain)


def _max_pool_call(call: Call) -> Pool | None:
    plain = _pair(call(4, "dilation", 1)) == (1, 1) and not call(5, "ceil_mode", False)
    plain = plain and not call(6, "return_indices", False)
    return _pool("max", call(1, "kernel_size"), call(2, "stride"), call(3, "padding", 0), plain)


def _average(kernel: Any, stride: Any, padding: Any, ceil: Any, counts_padding: Any, divisor: Any) -> Pool | None:
    kind = "average" if counts_padding else "average_of_inside"
    return _pool(kind, kernel, stride, padding, not ceil and divisor is None)


def _average_pool(module: Any) -> Pool | None:
    return _average(
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        module.count_include_pad,
        module.divisor_override,
    )


def _average_pool_call(call: Call) -> Pool | None:
    return _average(
        call(1, "kernel_size"),
        call(2, "stride"),
        call(3, "padding", 0),
        call(4, "ceil_mode", False),
        call(5, "count_include_pad", True),
        call(6, "divisor_override"),
    )


def _whole(size: Any) -> Pool | None:
    return Pool("average", True) if size == 1 or (isinstance(size, (tuple, list)) and tuple(size) == (1, 1)) else None


def _mean(call: Call) -> Pool | None:
    """mean over (2, 3) that keeps them; one that drops them is a flatten too and stays float."""
    axes = call(1, "dim")
    kept = call(2, "keepdim", False)
    if not kept or not isinstance(axes, (tuple, list)) or sorted(a % 4 for a in axes) != [2, 3]:
        return None
    return Pool("average", True)


def _flatten(start: Any, end: Any) -> Flatten | None:
    return Flatten() if start == 1 and end in (-1, 3) else None


def _view(call: Call) -> Flatten | None:
    sizes: tuple[Any, ...] = tuple(call.node.args[1:])
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = (*sizes[0],)
    return Flatten() if len(sizes) == 2 and sizes[1] == -1 else None


def _add(call: Call) -> Add | None:
    plain = len(call.node.args) == 2 and all(isinstance(item, fx.Node) for item in call.node.args)
    return Add() if plain and call.node.kwargs.get("alpha", 1) == 1 else None


def _hardtanh(low: Any, high: Any) -> Activation | None:
    return Activation("relu6") if (low, high) == (0, 6) else None


def _gelu(approximate: Any) -> Activation:
    return Activation("gelu_tanh" if approximate == "tanh" else "gelu")


_MODULES: dict[type[nn.Module], Callable[[Any], Op | None]] = {
    nn.Conv2d: _conv_module,
    nn.Linear: lambda m: _linear(m.weight, m.bias),
    nn.BatchNorm2d: _norm,
    nn.ReLU: lambda m: Activation("relu"),
    nn.ReLU6: lambda m: Activation("relu6"),
    nn.Hardtanh: lambda m: _hardtanh(m.min_val, m.max_val),
    nn.SiLU: lambda m: Activation("silu"),
    nn.Hardswish: lambda m: Activation("hard_swish"),
    nn.GELU: lambda m: _gelu(m.approximate),
    nn.ZeroPad2d: lambda m: _pad(m.padding),
    nn.ConstantPad2d: lambda m: _pad(m.padding, value=m.value),
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: lambda m: _whole(m.output_size),
    nn.Flatten: lambda m: _flatten(m.start_dim, m.end_dim),
    nn.Identity: lambda m: Same(),
    nn.Dropout: lambda m: None if m.training else Same(),
    nn.Dropout2d: lambda m: None if m.training else Same(),
}

_FUNCTIONS: dict[Any, Callable[[Call], Op | None]] = {
    F.conv2d: _conv_call,
    F.linear: lambda c: _linear(c(1, "weight"), c(2, "bias")),
    F.relu: lambda c: Activation("relu"),
    torch.relu: lambda c: Activation("relu"),
    F.relu6: lambda c: Activation("relu6"),
    F.hardtanh: lambda c: _hardtanh(c(1, "min_val", -1.0), c(2, "max_val", 1.0)),
    F.silu: lambda c: Activation("silu"),
    F.hardswish: lambda c: Activation("hard_swish"),
    F.gelu: lambda c: _gelu(c(1, "approximate", "none")),
    F.pad: lambda c: _pad(c(1, "pad"), c(2, "mode", "constant"), c(3, "value")),
    F.max_pool2d: _max_pool_call,
    F.avg_pool2d: _average_pool_call,
    F.adaptive_avg_pool2d: lambda c: _whole(c(1, "output_size")),
    F.dropout: lambda c: None if c(2, "training", True) else Same(),
    torch.mean: _mean,
    torch.flatten: lambda c: _flatten(c(1, "start_dim", 0), c(2, "end_dim", -1)),
    torch.add: _add,
    operator.add: _add,
    operator.iadd: _add,
}

_METHODS: dict[str, Callable[[Call], Op | None]] = {
    "relu": lambda c: Activation("relu"),
    "relu_": lambda c: Activation("relu"),
    "add": _add,
    "add_": _add,
    "mean": _mean,
    "flatten": lambda c: _flatten(c(1, "start_dim", 0), c(2, "end_dim", -1)),
    "view": _view,
    "reshape": _view,
    "contiguous": lambda c: Same(),
}

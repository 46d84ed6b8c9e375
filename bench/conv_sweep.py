"""Convolutions by themselves: float in, float out, static int8 between, against rivals; part of bench/compare.py.

Every engine has the same pictures, filters and bias and its own favourite layout of memory: tersor and torch channels
last, ONNX Runtime and OpenVINO as ONNX has it. A relu follows. The ranges of input and output are given.
"""

from __future__ import annotations

import functools
import io
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

BATCHES = (1, 8)
SHAPE = "IN OUT GROUPS KERNEL STRIDE PAD HEIGHT"
Run = Callable[[], Any]
Shape = tuple[int, ...]


@dataclass
class Layer:
    """One convolution and its pictures, numbers and all."""

    shape: Shape
    x: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    exact: npt.NDArray[np.float32]

    @property
    def x_range(self) -> tuple[np.float32, int]:
        """Scale and zero point of the input; it has no negative values."""
        return np.float32(self.x.max() / 255), 0


@dataclass
class Row:
    """One shape: microseconds per engine, the error of each against float, and what is read off them."""

    shape: Shape
    batch: int
    microseconds: dict[str, float]
    relative_error: dict[str, float]
    best_rival: str = ""
    speedup: float = math.nan
    gops: float = math.nan
    percent_of_ceiling: float = math.nan


@dataclass
class Sweep:
    """All rows of a run."""

    threads: int
    command: str
    host: dict[str, str]
    ceiling_gops: float
    missing: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    geomean_speedup: float = math.nan
    worst_speedup: float = math.nan


def make_layer(shape: Shape, batch: int) -> Layer:
    """Random filters and pictures as they are after a relu."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    channels, out, groups, kernel, stride, pad, height = shape
    generator = torch.Generator().manual_seed(0)
    depth = channels // groups * kernel * kernel
    weight = torch.randn(out, channels // groups, kernel, kernel, generator=generator) / depth**0.5
    x = torch.randn(batch, channels, height, height, generator=generator).relu()
    bias = torch.randn(out, generator=generator)
    exact = F.conv2d(x, weight, bias, stride, pad, 1, groups).relu()
    return Layer(shape, x.numpy(), weight.numpy(), bias.numpy(), exact.numpy())


def tersor_conv(layer: Layer) -> dict[str, Run]:
    """An Int8Graph of one convolution and its relu."""
    import torch
    from torch import nn

    from tersor.convnet import quantize_convnet

    channels, out, groups, kernel, stride, pad, _ = layer.shape
    float_conv = nn.Conv2d(channels, out, kernel, stride, pad, 1, groups)
    float_conv.load_state_dict({"weight": torch.from_numpy(layer.weight), "bias": torch.from_numpy(layer.bias)})
    model = nn.Sequential(float_conv, nn.ReLU()).eval()
    x = torch.from_numpy(layer.x).contiguous(memory_format=torch.channels_last)
    quantize_convnet(model, [x], smooth=0.0, corrections=(), force=True)

    return {"tersor": functools.partial(model, x)}


def torch_conv(layer: Layer, _: int) -> dict[str, Run]:
    """torch's own static int8 in each of its engines."""
    import torch
    from torch.ao.nn.intrinsic import quantized

    channels, out, groups, kernel, stride, pad, _ = layer.shape
    weight = torch.from_numpy(layer.weight)
    scales = (weight.abs().amax((1, 2, 3)) / 127).double()
    weight_q = torch.quantize_per_channel(weight, scales, torch.zeros(out, dtype=torch.int64), 0, torch.qint8)
    x = torch.from_numpy(layer.x).contiguous(memory_format=torch.channels_last)
    scale, zero = layer.x_range
    made: dict[str, Run] = {}
    quantized_conv: Any = quantized.ConvReLU2d
    for engine in ("x86", "onednn", "fbgemm"):
        if engine not in torch.backends.quantized.supported_engines:
            continue
        torch.backends.quantized.engine = engine
        conv = quantized_conv(channels, out, kernel, stride, pad, 1, groups)
        conv.set_weight_bias(weight_q, torch.from_numpy(layer.bias))
        conv.scale, conv.zero_point = float(layer.exact.max() / 255), 0

        def run(conv: Any = conv) -> Any:
            return conv(torch.quantize_per_tensor(x, float(scale), zero, torch.quint8)).dequantize()

        made[f"torch-int8/{engine}"] = run
    return made


def qdq_model(layer: Layer) -> bytes:
    """ONNX: quantise, dequantise, convolution, relu, quantise, dequantise."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    _, _, groups, kernel, stride, pad, _ = layer.shape
    w_scale = (np.abs(layer.weight).max((1, 2, 3)) / 127).astype(np.float32)
    weight_q = np.clip(np.round(layer.weight / w_scale[:, None, None, None]), -127, 127).astype(np.int8)
    scale, _ = layer.x_range
    bias_scale = (scale * w_scale).astype(np.float32)
    constants = {
        "w": weight_q,
        "w_scale": w_scale,
        "w_zero": np.zeros(w_scale.size, np.int8),
        "b": np.round(layer.bias / bias_scale).astype(np.int32),
        "b_scale": bias_scale,
        "b_zero": np.zeros(w_scale.size, np.int32),
        "x_scale": np.array(scale),
        "y_scale": np.array(layer.exact.max() / 255, np.float32),
        "zero": np.array(0, np.uint8),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "x_scale", "zero"], ["x_q"]),
        node("DequantizeLinear", ["x_q", "x_scale", "zero"], ["x_d"]),
        node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_d"], axis=0),
        node("DequantizeLinear", ["b", "b_scale", "b_zero"], ["b_d"], axis=0),
        node(
            "Conv",
            ["x_d", "w_d", "b_d"],
            ["c"],
            group=groups,
            kernel_shape=[kernel] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
        ),
        node("Relu", ["c"], ["r"]),
        node("QuantizeLinear", ["r", "y_scale", "zero"], ["y_q"]),
        node("DequantizeLinear", ["y_q", "y_scale", "zero"], ["y"]),
    ]
    made = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, layer.x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, layer.exact.shape)],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def onnxruntime_conv(layer: Layer, threads: int) -> dict[str, Run]:
    """ONNX Runtime on the QDQ model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or it slows whoever runs next
    session = ort.InferenceSession(qdq_model(layer), options, providers=["CPUExecutionProvider"])
    return {"onnxruntime": lambda: session.run(None, {"x": layer.x})[0]}


def openvino_conv(layer: Layer, threads: int) -> dict[str, Run]:
    """OpenVINO on the QDQ model: one stream, a request used again, a shared input."""
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(io.BytesIO(qdq_model(layer))), "CPU", settings).create_infer_request()
    request.set_input_tensor(ov.Tensor(layer.x, shared_memory=True))

    def run() -> Any:
        request.infer()
        return request.get_output_tensor().data

    return {"openvino": run}


BUILDERS = {"torch-int8": torch_conv, "onnxruntime": onnxruntime_conv, "openvino": openvino_conv}


def run(shapes: list[Shape], threads: int, peers: list[str], rounds: int, sweep: Sweep) -> None:
    """Measures every shape at every batch; `sweep` gets the rows."""
    import torch
    from rich.console import Console
    from rich.progress import track

    from tersor.benchmark import interleave

    torch.set_num_threads(threads)
    cases = [(shape, batch) for shape in shapes for batch in BATCHES]
    for shape, batch in track(cases, description="shapes", console=Console(stderr=True)):
        layer = make_layer(shape, batch)
        runs = tersor_conv(layer)
        for peer in peers:
            try:
                runs.update(BUILDERS[peer](layer, threads))
            except (ImportError, RuntimeError) as error:
                sweep.missing[peer] = str(error)
        size = np.linalg.norm(layer.exact)
        with torch.inference_mode():
            errors = {name: float(np.linalg.norm(np.asarray(one()) - layer.exact) / size) for name, one in runs.items()}
            laps = interleave(runs, rounds=rounds, turn_seconds=0.02)
        sweep.rows.append(_row(layer, batch, {name: lap.median * 1e6 for name, lap in laps.items()}, errors, sweep))
    speedups = [row.speedup for row in sweep.rows if not math.isnan(row.speedup)]
    if speedups:
        sweep.geomean_speedup = math.exp(statistics.fmean(math.log(one) for one in speedups))
        sweep.worst_speedup = min(speedups)


def _row(layer: Layer, batch: int, us: dict[str, float], errors: dict[str, float], sweep: Sweep) -> Row:
    row = Row(layer.shape, batch, us, errors)
    rivals = {name: value for name, value in us.items() if name != "tersor"}
    if rivals:
        row.best_rival = min(rivals, key=lambda name: rivals[name])
        row.speedup = rivals[row.best_rival] / us["tersor"]
    row.gops = 2e-3 * layer.exact.size * layer.weight[0].size / us["tersor"]
    row.percent_of_ceiling = 100 * row.gops / (sweep.ceiling_gops * sweep.threads)
    return row


def to_json(sweep: Sweep) -> str:
    """What --json writes."""
    return json.dumps(asdict(sweep), indent=1) + "\n"


def table(sweep: Sweep) -> str:
    """A Markdown table, microseconds."""
    engines = list(dict.fromkeys(name for row in sweep.rows for name in row.microseconds))
    lines = [f"| {SHAPE.lower()} | batch | " + " | ".join(engines) + " | speed-up | % of ceiling |"]
    lines.append("|" + "---|" * (len(engines) + 4))
    for row in sweep.rows:
        times = " | ".join(f"{row.microseconds.get(name, math.nan):.0f}" for name in engines)
        shape = " ".join(map(str, row.shape))
        lines.append(f"| {shape} | {row.batch} | {times} | {row.speedup:.2f} | {row.percent_of_ceiling:.0f} |")
    lines.append(f"\nGeometric mean {sweep.geomean_speedup:.2f}x over the best rival, worst {sweep.worst_speedup:.2f}x")
    return "\n".join(lines) + "\n"

"""Other engines on the same model, set up as their makers advise: ONNX Runtime and OpenVINO, both in int8.

* ONNX Runtime: the transformer optimiser (which knows eager attention), then dynamic int8 weights per channel.
* OpenVINO: NNCF's post-training quantisation for transformers over samples; float32 elsewhere, one stream, the threads
  set, inputs shared, one request used again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Mapping[str, Tensor]
Engine = Callable[[Inputs], Tensor]


class _Bare(nn.Module):
    """The last hidden state of a Hugging Face model from positional arguments, which the exporter wants."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *args: Tensor) -> Tensor:
        output: Tensor = self.model(**dict(zip(self.names, args, strict=True))).last_hidden_state
        return output


def export(model: nn.Module, example: Inputs, path: Path) -> Path:
    """The model as an ONNX file with any batch and length; made once."""
    if not path.exists():
        axes = {name: {0: "batch", **({1: "tokens"} if value.dim() == 2 else {})} for name, value in example.items()}
        torch.onnx.export(
            _Bare(model, [*example]).eval(),
            tuple(example.values()),
            str(path),
            input_names=[*example],
            output_names=["hidden"],
            dynamo=False,
            opset_version=17,
            dynamic_axes=axes | {"hidden": {0: "batch", 1: "tokens"}},
        )
    return path


def onnxruntime_int8(model: Any, plain: Path, threads: int) -> Engine:
    """Dynamic int8 in ONNX Runtime."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    config, int8 = model.config, plain.with_suffix(".ort.onnx")
    if not int8.exists():
        kind = "vit" if config.model_type == "vit" else "bert"
        heads = getattr(config, "num_attention_heads", getattr(config, "n_heads", 0))
        hidden = getattr(config, "hidden_size", getattr(config, "dim", 0))
        fused = optimizer.optimize_model(str(plain), model_type=kind, num_heads=heads, hidden_size=hidden)
        fused.save_model_to_file(str(plain.with_suffix(".fused.onnx")))
        quantize_dynamic(
            plain.with_suffix(".fused.onnx"),
            int8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"DefaultTensorType": 1},
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(int8), options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> Tensor:
        return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])

    return run


def openvino_int8(plain: Path, calibration: Sequence[Inputs], threads: int) -> Engine:
    """Static int8 in OpenVINO, by NNCF."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    core, int8 = openvino.Core(), plain.with_suffix(".ov.xml")
    if not int8.exists():
        data = nncf.Dataset([{name: value.numpy() for name, value in batch.items()} for batch in calibration])
        quantised = nncf.quantize(
            core.read_model(plain), data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(calibration)
        )
        openvino.save_model(quantised, int8, compress_to_fp16=False)
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(int8), "CPU", settings).create_infer_request()

    def run(inputs: Inputs) -> Tensor:
        shared = {name: openvino.Tensor(value.numpy(), shared_memory=True) for name, value in inputs.items()}
        request.infer(shared)
        return torch.from_numpy(request.get_output_tensor().data)

    return run

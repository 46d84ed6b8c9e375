"""OpenVINO: one stream, fp32 hint, a reused request with shared tensors; int8 is the static QDQ form."""

from __future__ import annotations

import io

from peers import MissingPeerError, Problem, Run


def openvino(problem: Problem) -> dict[str, Run]:
    try:
        import openvino as ov

        from peers import onnx_models
    except ImportError as error:
        raise MissingPeerError(str(error)) from error
    core = ov.Core()
    settings = {
        "INFERENCE_NUM_THREADS": problem.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }

    def request(model: bytes) -> Run:
        compiled = core.compile_model(core.read_model(io.BytesIO(model)), "CPU", settings)
        made = compiled.create_infer_request()
        made.set_input_tensor(ov.Tensor(problem.x, shared_memory=True))
        out = made.get_output_tensor()

        def run() -> object:
            made.infer()
            return out.data

        return run

    return {
        "openvino/f32": request(onnx_models.float32(problem)),
        "openvino/int8": request(onnx_models.static_int8(problem)),
    }

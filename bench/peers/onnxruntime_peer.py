"""ONNX Runtime. Its fast int8 form of a linear layer is the dynamic one; QDQ with a float bias is slow there."""

from __future__ import annotations

from peers import MissingPeerError, Problem, Run


def onnxruntime(problem: Problem) -> dict[str, Run]:
    try:
        import onnxruntime as ort

        from peers import onnx_models
    except ImportError as error:
        raise MissingPeerError(str(error)) from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = problem.threads
    options.inter_op_num_threads = 1

    def session(model: bytes) -> Run:
        made = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda: made.run(None, {"x": problem.x})[0]

    return {
        "onnxruntime/f32": session(onnx_models.float32(problem)),
        "onnxruntime/int8-dynamic": session(onnx_models.dynamic_int8(problem)),
    }

"""The layer as ONNX graphs: dynamic int8 (DynamicQuantizeLinear + MatMulInteger) and static int8 (QDQ)."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from peers import Problem, quantise_weight


def graph(problem: Problem, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> bytes:
    m, n, k = problem.shape
    made = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [m, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [m, n])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def dynamic_int8(problem: Problem) -> bytes:
    weight, scale = quantise_weight(problem.weight)
    constants = {"w": weight.T, "w_scale": scale, "w_zero": np.zeros(scale.size, np.int8), "b": problem.bias}
    node = helper.make_node
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["x_q", "x_scale", "x_zero"]),
        node("MatMulInteger", ["x_q", "w", "x_zero", "w_zero"], ["y_int"]),
        node("Cast", ["y_int"], ["y_float"], to=TensorProto.FLOAT),
        node("Mul", ["x_scale", "w_scale"], ["scale"]),
        node("Mul", ["y_float", "scale"], ["y_scaled"]),
        node("Add", ["y_scaled", "b"], ["y"]),
    ]
    return graph(problem, nodes, constants)


def static_int8(problem: Problem) -> bytes:
    weight, scale = quantise_weight(problem.weight)
    low, high = float(problem.x.min()), float(problem.x.max())
    x_scale = np.float32((high - low) / 255)
    constants = {
        "w": weight.T,
        "w_scale": scale,
        "w_zero": np.zeros(scale.size, np.int8),
        "b": problem.bias,
        "x_scale": np.array(x_scale),
        "x_zero": np.array(np.round(-low / x_scale), np.uint8),
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]),
        node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_d"]),
        node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_d"], axis=1),
        node("MatMul", ["x_d", "w_d"], ["y_0"]),
        node("Add", ["y_0", "b"], ["y"]),
    ]
    return graph(problem, nodes, constants)


def float32(problem: Problem) -> bytes:
    node = helper.make_node
    nodes = [node("MatMul", ["x", "w"], ["y_0"]), node("Add", ["y_0", "b"], ["y"])]
    return graph(problem, nodes, {"w": problem.weight.T, "b": problem.bias})

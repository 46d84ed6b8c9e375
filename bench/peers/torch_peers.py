"""torch itself: the float layer, and dynamic int8 in each quantised engine of this build."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from peers import Problem, Run


def float_layer(problem: Problem) -> nn.Linear:
    _, n, k = problem.shape
    layer = nn.Linear(k, n)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(problem.weight))
        layer.bias.copy_(torch.from_numpy(problem.bias))
    return layer.eval()


def torch_float(problem: Problem) -> dict[str, Run]:
    layer, x = float_layer(problem), torch.from_numpy(problem.x)
    return {"torch": lambda: layer(x)}


def torch_int8(problem: Problem) -> dict[str, Run]:
    x = torch.from_numpy(problem.x)
    runs: dict[str, Run] = {}
    before = torch.backends.quantized.engine
    for engine in torch.backends.quantized.supported_engines:
        if engine in ("none", "qnnpack"):
            continue
        torch.backends.quantized.engine = engine
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.ao.quantization.quantize_dynamic(nn.Sequential(float_layer(problem)), {nn.Linear}, torch.qint8)
        runs[f"torch-int8/{engine}"] = lambda model=model: model(x)
    torch.backends.quantized.engine = before
    return runs

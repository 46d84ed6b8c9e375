"""torch itself: the float layer, and dynamic int8 in each quantised engine of this build."""

from __future__ import annotations

import functools

import torch
from torch import nn

from peers import Problem, Run
from tersor.torch_int8 import dynamic_int8, engines


def float_layer(problem: Problem) -> nn.Linear:
    _, n, k = problem.shape
    layer = nn.Linear(k, n)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(problem.weight))
        layer.bias.copy_(torch.from_numpy(problem.bias))
    return layer.eval()


def torch_float(problem: Problem) -> dict[str, Run]:
    layer, x = float_layer(problem), torch.from_numpy(problem.x)
    return {"torch": functools.partial(layer, x)}


def torch_int8(problem: Problem) -> dict[str, Run]:
    x, model = torch.from_numpy(problem.x), nn.Sequential(float_layer(problem))
    return {f"torch-int8/{engine}": functools.partial(dynamic_int8(model, engine), x) for engine in engines()}

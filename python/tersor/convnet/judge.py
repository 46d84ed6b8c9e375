"""Whether an int8 graph is faster than the float operations that it stands for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from tersor.convnet.segments import Segment
from tersor.tune import Verdict, decide

_SECONDS = 0.4
_LEAST, _MOST = 5, 100


def float_part(traced: fx.GraphModule, segment: Segment) -> nn.Module:
    """The operations of a segment as a module of their own."""
    graph = fx.Graph()
    copies = {segment.source: graph.placeholder("x")}
    inside = set(segment.nodes)
    for node in traced.graph.nodes:
        if node in inside or node.op == "get_attr":
            copies[node] = graph.node_copy(node, lambda old: copies[old])
    graph.output(copies[segment.result])
    part = fx.GraphModule(traced, graph)
    part.graph.eliminate_dead_code()
    part.recompile()
    return part


def compare(before: nn.Module, after: nn.Module, x: Tensor) -> Verdict:
    """Times both on x in turn, without gradients; the verdict counts pictures as rows."""
    with torch.no_grad():
        before(x), after(x)
        guess = _seconds(before, x) + _seconds(after, x)
        rounds = min(max(int(_SECONDS / max(guess, 1e-6)), _LEAST), _MOST)
        times = [(_seconds(before, x), _seconds(after, x)) for _ in range(rounds)]
    float_us, tersor_us = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
    return decide({len(x): float_us}, {len(x): tersor_us})


def _seconds(call: Callable[[Tensor], object], x: Tensor) -> float:
    begin = time.perf_counter()
    call(x)
    return time.perf_counter() - begin

"""A network as a graph of torch.fx, and what flows along its edges."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn


def trace(module: nn.Module) -> fx.GraphModule | None:
    """The graph of a module in eval mode, or None where it depends on values, as Python code may.

    The same module always gives the same names of nodes. `x.view(x.size(0), -1)` becomes a flatten.
    """
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        traced = fx.symbolic_trace(module)
    except Exception:  # whatever the network's code raises when it is given proxies
        return None
    finally:
        for part in training:
            part.training = True
    for node in list(traced.graph.nodes):
        if _flattens(node):
            with traced.graph.inserting_after(node):
                flat = traced.graph.call_function(torch.flatten, (node.args[0], 1))
            node.replace_all_uses_with(flat)
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    traced.eval()
    return traced


def _flattens(node: fx.Node) -> bool:
    """x.view(n, -1) and x.reshape(n, -1) where n is the size of the first dimension of some tensor."""
    if node.op != "call_method" or node.target not in ("view", "reshape") or len(node.args) != 3 or node.args[2] != -1:
        return False
    first = node.args[1]
    if not isinstance(first, fx.Node):
        return False
    if first.op == "call_method" and first.target == "size":
        return bool(first.args[1:] == (0,))
    return bool(first.op == "call_function" and first.target is operator.getitem and first.args[1] == 0)


class Watched(fx.Interpreter):
    """Runs a graph and shows every tensor that is made to `see`."""

    def __init__(self, traced: fx.GraphModule, see: Callable[[fx.Node, Tensor], None]) -> None:
        super().__init__(traced)
        self.extra_traceback = False  # errors stay as they are
        self.see = see

    def run_node(self, node: fx.Node) -> Any:
        """As fx.Interpreter's."""
        value = super().run_node(node)
        if isinstance(value, Tensor):
            self.see(node, value)
        return value

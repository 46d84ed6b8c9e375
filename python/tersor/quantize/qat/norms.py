"""Which batch norm follows which convolution."""

from __future__ import annotations

import itertools
import warnings

from torch import fx, nn


def conv_norm_pairs(model: nn.Module) -> dict[str, str]:
    """Convolution -> the batch norm that alone reads its output, by qualified names.

    The model is traced by torch.fx; where that fails, neighbours in an nn.Sequential are found.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = fx.symbolic_trace(model).graph
    except Exception:  # whatever the model's forward does to a proxy
        return _neighbours(model)
    modules = dict(model.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in calls]
    pairs = {}
    for node in calls:
        users = list(node.users)
        if len(users) != 1 or users[0].op != "call_module" or users[0].args[:1] != (node,):
            continue
        conv, norm = str(node.target), str(users[0].target)
        if _fits(modules[conv], modules[norm]) and targets.count(conv) == targets.count(norm) == 1:
            pairs[conv] = norm
    return pairs


def _neighbours(model: nn.Module) -> dict[str, str]:
    pairs = {}
    for name, module in model.named_modules():
        if type(module) is nn.Sequential:
            children = list(module.named_children())
            for (first, conv), (second, norm) in itertools.pairwise(children):
                if _fits(conv, norm):
                    prefix = f"{name}." if name else ""
                    pairs[prefix + first] = prefix + second
    return pairs


def _fits(conv: nn.Module, norm: nn.Module) -> bool:
    return type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.running_var is not None

"""Cross-layer equalisation: channels between two layers made equally large on both sides."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from tersor import modules
from tersor.errors import SwapError

_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
_FUNCTIONS = (torch.relu, nn.functional.relu)
_POOL_FUNCTIONS = (nn.functional.max_pool2d, nn.functional.avg_pool2d, nn.functional.adaptive_avg_pool2d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
LARGEST_FACTOR = 1e4


@dataclass(frozen=True)
class EqualizedPair:
    """Two layers, the first of which gives its output to the second alone.

    Attributes:
        first, second: qualified names.
        before, after: the ratio of the largest to the smallest range of the first layer's output channels.
    """

    first: str
    second: str
    before: float
    after: float


@torch.no_grad()
def equalize(
    model: nn.Module, *, rounds: int = 4, selected: Callable[[str], bool] = lambda _: True
) -> list[EqualizedPair]:
    """Scale the output channels of layers and the input channels of those that follow, in place.

    With ``r1``, ``r2`` the largest ``|w|`` of an output channel of the first layer and of that input channel of the
    second, the first is divided by ``s = sqrt(r1 / r2)`` and the second multiplied by it, so that both become
    ``sqrt(r1 r2)``. Between them may be what passes a positive factor through: ReLU, leaky ReLU, pooling, dropout,
    flattening. The model computes what it did, but for rounding. Fold batch norms first.

    Args:
        rounds: over all pairs, since neighbours share a layer.
        selected: whether a layer of this name may be changed.

    Raises:
        SwapError: torch.fx can't trace the model.

    Source: Nagel et al., Data-free quantization through weight equalization and bias correction, ICCV 2019 (arXiv
    1906.04721), section 4.1.
    """
    pairs = [pair for pair in find_pairs(model) if all(map(selected, pair))]
    named = dict(model.named_modules())
    before = {pair: _spread(_first_range(named[pair[0]])) for pair in pairs}
    for _ in range(rounds):
        for first, second in pairs:
            _equalize_pair(named[first], named[second])
    return [EqualizedPair(*pair, before[pair], _spread(_first_range(named[pair[0]]))) for pair in pairs]


def find_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """The layers that can be equalised, by qualified names, in order.

    Raises:
        SwapError: torch.fx can't trace the model.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = fx.symbolic_trace(model).graph
    except Exception as error:
        raise SwapError(f"torch.fx can't trace the model: {type(error).__name__}: {error}") from error
    named = dict(model.named_modules())
    tied = modules.tied_parameters(model)
    targets = [str(node.target) for node in graph.nodes if node.op == "call_module"]

    def layer(node: fx.Node) -> nn.Module | None:
        module = named.get(str(node.target)) if node.op == "call_module" else None
        fits = type(module) in _LAYERS and id(module) not in tied and targets.count(str(node.target)) == 1
        return module if fits and getattr(module, "groups", 1) == 1 else None

    pairs = []
    for node in graph.nodes:
        first = layer(node)
        if first is None:
            continue
        following, passed = _following(node, named)
        second = None if following is None else layer(following)
        if following is not None and second is not None and _fit(first, second, passed):
            pairs.append((str(node.target), str(following.target)))
    return pairs


def _following(node: fx.Node, named: dict[str, nn.Module]) -> tuple[fx.Node | None, set[str]]:
    """The layer that alone gets the output, and what lies between: "pool", "flatten"."""
    passed: set[str] = set()
    while len(node.users) == 1:
        (node,) = node.users
        if node.op == "call_module" and type(named[str(node.target)]) in _LAYERS:
            return node, passed
        kind = _kind(node, named)
        if kind is None:
            break
        passed.add(kind)
    return None, passed


def _kind(node: fx.Node, named: dict[str, nn.Module]) -> str | None:
    if node.op == "call_module":
        module = named[str(node.target)]
        if isinstance(module, nn.Flatten):
            return "flatten" if module.start_dim == 1 else None
        return "elementwise" if isinstance(module, _ELEMENTWISE) else "pool" if isinstance(module, _POOLS) else None
    if node.op == "call_function" and (node.target in _FUNCTIONS or node.target in _POOL_FUNCTIONS):
        return "elementwise" if node.target in _FUNCTIONS else "pool"
    if node.op == "call_method" and node.target == "relu":
        return "elementwise"
    if node.target in (torch.flatten, "flatten"):
        return "flatten" if node.args[1:] == (1,) and not node.kwargs else None
    return None


def _fit(first: nn.Module, second: nn.Module, passed: set[str]) -> bool:
    if isinstance(first, nn.Linear):
        return isinstance(second, nn.Linear) and passed <= {"elementwise"}
    if isinstance(second, nn.Linear):
        return "flatten" in passed  # the inputs that belong to a channel lie together
    return "flatten" not in passed


def _first_range(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach().flatten(1).abs().amax(1)


def _spread(ranges: Tensor) -> float:
    alive = ranges[ranges > 0]
    return float(alive.max() / alive.min()) if len(alive) else 1.0


def _equalize_pair(first: nn.Module, second: nn.Module) -> None:
    weight: Tensor = first.weight  # type: ignore[assignment]
    later: Tensor = second.weight  # type: ignore[assignment]
    r1 = _first_range(first)
    r2 = later.detach().transpose(0, 1).reshape(len(r1), -1).abs().amax(1)
    known = (r1 > 0) & (r2 > 0)
    s = torch.where(known, (r1 / r2.clamp_min(1e-30)).sqrt(), torch.ones_like(r1))
    s = s.clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)
    weight.div_(s.reshape(-1, *[1] * (weight.dim() - 1)))
    if isinstance(first.bias, Tensor):
        first.bias.div_(s)
    repeated = s.repeat_interleave(later.shape[1] // len(s))
    later.mul_(repeated.reshape(1, -1, *[1] * (later.dim() - 2)))

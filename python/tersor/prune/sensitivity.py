"""How much each layer can lose: pruned alone, one layer after another, and a proposal of sparsities from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from tersor.errors import PruneError
from tersor.prune.calibration import Calibration, Loss, mean_loss
from tersor.prune.criteria import Criterion, make_criterion
from tersor.prune.criteria.registry import Scope
from tersor.prune.layers import PrunableLayer, find_layers
from tersor.prune.patterns import parse_pattern
from tersor.prune.removal import choose, count_of, zero

Evaluate = Callable[[nn.Module], float]
"""``evaluate(model)``: lower is better; a loss, or a negative accuracy."""


@dataclass(frozen=True)
class Sensitivity:
    """The outcome of a scan.

    Attributes:
        baseline: the value of the model as it is.
        weights: by layer: the number of its weights.
        curves: by layer: sparsity -> value with only this layer pruned.
    """

    baseline: float
    weights: dict[str, int]
    curves: dict[str, dict[float, float]]

    def propose(self, sparsity: float) -> dict[str, float]:
        """Sparsities per layer, to be given as ``overrides``, which together make ``sparsity``.

        Greedy: from all layers whole, the layer whose next scanned sparsity costs the least per removed weight is
        taken there, until enough is removed; the last step goes only as far as needed. Costs are the rise over the
        baseline, never falling with sparsity, and taken to add up over layers.

        Raises:
            PruneError: the scanned sparsities don't reach that far.
        """
        target = sparsity * sum(self.weights.values())
        reach = sum(max(curve) * self.weights[name] for name, curve in self.curves.items())
        if sparsity < 0 or target > reach + 1e-6:
            raise PruneError(f"the scan reaches {reach / sum(self.weights.values()):.3f}, not {sparsity}")
        now = dict.fromkeys(self.curves, 0.0)
        paid = dict.fromkeys(self.curves, 0.0)
        removed = 0.0
        while removed < target - 1e-6:
            _, name, level, cost = min(self._options(now, paid))
            gain = min((level - now[name]) * self.weights[name], target - removed)
            now[name] = min(1.0, now[name] + gain / self.weights[name])
            paid[name] = cost
            removed += gain
        return now

    def _options(self, now: Mapping[str, float], paid: Mapping[str, float]) -> list[tuple[float, str, float, float]]:
        options = []
        for name, curve in self.curves.items():
            level = min((level for level in curve if level > now[name]), default=None)
            if level is not None:
                cost = max(paid[name], curve[level] - self.baseline)
                weights = (level - now[name]) * self.weights[name]
                options.append(((cost - paid[name]) / weights, name, level, cost))
        return options


def sensitivity_scan(
    model: nn.Module,
    evaluate: Evaluate | None = None,
    *,
    criterion: str | Criterion = "magnitude",
    pattern: str = "1x4",
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    calibration: Iterable[Any] | None = None,
    loss: Loss | None = None,
    memory: int = 2**30,
) -> Sensitivity:
    """Prune every layer alone to every sparsity, without training, and look what it does to the model.

    The model is the same afterwards, bit for bit. It is evaluated ``layers * sparsities + 1`` times.

    Args:
        evaluate: lower is better; None: the mean of ``loss(model, batch)`` over ``calibration``, in eval mode.
        criterion, pattern, include, exclude, calibration, loss, memory: as of :class:`tersor.prune.Pruner`; scores
            are compared as the criterion's paper does.
        sparsities: to try, each above 0 and at most 1.

    Raises:
        PruneError: a value out of range, missing data, an N:M pattern (its sparsity is fixed), or nothing to prune.
    """
    judge, shape = make_criterion(criterion), parse_pattern(pattern)
    data = None if calibration is None else Calibration(calibration, loss, memory)
    if shape.sparsity is not None:
        raise PruneError(f"the pattern {shape} has one sparsity only; scan with blocks or unstructured")
    levels = sorted(set(sparsities))
    if not levels or not all(0 < level <= 1 for level in levels):
        raise PruneError(f"sparsities must be above 0 and at most 1, got {list(sparsities)}")
    value = evaluate if evaluate is not None else _mean_loss(data)
    layers, _ = find_layers(model, include, exclude)
    scope: Literal["row", "layer"] = "row" if judge.scope == "row" else "layer"
    baseline = value(model)
    curves: dict[str, dict[float, float]] = {}
    for layer in layers:
        saved = layer.weight.detach().clone()
        curve = curves[layer.name] = {}
        for level in levels:
            try:
                _prune_alone(model, layer, judge, pattern, scope, level, data)
                curve[level] = value(model)
            finally:
                with torch.no_grad():
                    layer.weight.copy_(saved)
    return Sensitivity(baseline, {layer.name: layer.weight.numel() for layer in layers}, curves)


def _prune_alone(
    model: nn.Module,
    layer: PrunableLayer,
    criterion: Criterion,
    pattern: str,
    scope: Scope,
    sparsity: float,
    data: Calibration | None,
) -> None:
    shape = parse_pattern(pattern)
    held = {layer.name: torch.ones(layer.shape, dtype=torch.bool, device=layer.weight.device)}
    counts = {layer.name: count_of(layer, shape, sparsity)}
    zero(layer, choose(model, [layer], criterion, shape, scope, counts, held, data)[layer.name])


def _mean_loss(data: Calibration | None) -> Evaluate:
    if data is None or data.loss is None:
        raise PruneError("a scan needs evaluate(model), or calibration data and a loss(model, batch)")
    return lambda model: mean_loss(model, data)

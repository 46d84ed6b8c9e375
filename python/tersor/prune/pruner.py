"""Pruning beside a training loop: `step()` after each optimiser step, `finish()` at its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tersor.errors import PruneError
from tersor.prune.calibration import Calibration, Loss
from tersor.prune.criteria import Criterion, make_criterion
from tersor.prune.criteria.registry import Scope
from tersor.prune.layers import PrunableLayer, find_layers, matches
from tersor.prune.patterns import Pattern, parse_pattern
from tersor.prune.removal import Masks, choose, count_of, zero
from tersor.prune.schedules import Schedule, make_schedule
from tersor.training import sharding


@dataclass(frozen=True)
class PrunedLayer:
    """What became of one layer.

    Attributes:
        name: its qualified name.
        weights: the number of its weights.
        zeros: how many are zero.
        asked: the sparsity that was asked for; under the scope ``"global"``, of all pooled layers together.
    """

    name: str
    weights: int
    zeros: int
    asked: float

    @property
    def sparsity(self) -> float:
        """The sparsity reached."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class PruneResult:
    """What became of a model.

    Attributes:
        layers: the pruned layers, in order.
        skipped: every other linear or convolution layer with the reason.
        losses: the loss of each optimiser step, where :func:`tersor.prune.fit` trained.
    """

    layers: tuple[PrunedLayer, ...]
    skipped: dict[str, str]
    losses: list[float] = field(default_factory=list)

    @property
    def sparsity(self) -> float:
        """The part of all weights of the pruned layers that is zero."""
        return sum(layer.zeros for layer in self.layers) / sum(layer.weights for layer in self.layers)


class Pruner:
    """Removes weights from a model, in place, at once or while it is trained.

    Nothing is hung on the model: no hook, no mask, no second copy of a weight. Masks live here, and the model only
    ever sees zeros in its own parameters, so any optimiser, gradient accumulation and mixed precision work. Weights
    that are removed stay removed.

    Args:
        model: any module; its linear and convolution layers (1 and 2 dimensions) are pruned. Layers whose weight is
            shared are skipped, with the reason in ``skipped``.
        criterion: what matters: a name in ``CRITERIA``, or an object for one with settings.
        pattern: what leaves together: ``"unstructured"``, blocks ``"1x4"`` (outputs x inputs), N:M ``"2:4"``.
        sparsity: the part of the weights that is zero at the end; the N:M patterns bring their own.
        schedule: ``"one_shot"``, ``"linear"``, ``"cubic"`` or a schedule object. What is due before the first step
            is removed by the constructor.
        steps, every: of a schedule given by name: the step at which it ends, and the steps between two removals.
        scope: compare scores within each ``"row"``, ``"layer"`` or ``"global"`` over all layers; ``"auto"`` is what
            the criterion's paper does.
        include, exclude: shell wildcards on qualified module names; exclude wins.
        overrides: shell wildcard -> its layers' own sparsity (0 leaves them whole); the first match counts.
        calibration: batches that can be iterated again, for criteria that need data; used at every removal.
        loss: ``loss(model, batch)``, for criteria that need gradients; see :class:`Calibration`.
        memory: bytes for statistics at once.

    Raises:
        PruneError: an unknown name, a value out of range, missing data, or nothing to prune.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        criterion: str | Criterion = "magnitude",
        pattern: str | Pattern = "1x4",
        sparsity: float | None = None,
        schedule: str | Schedule = "one_shot",
        steps: int = 0,
        every: int = 1,
        scope: Scope | Literal["auto"] = "auto",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        overrides: Mapping[str, float] | None = None,
        calibration: Iterable[Any] | None = None,
        loss: Loss | None = None,
        memory: int = 2**30,
    ) -> None:
        self.model = model
        self.criterion = make_criterion(criterion)
        self.pattern = parse_pattern(pattern)
        self.schedule = make_schedule(schedule, steps, every)
        self.scope = _scope(scope, self.criterion)
        self.layers, self.skipped = find_layers(model, include, exclude)
        self.sparsities, self._alone = _sparsities(self.layers, self.pattern, sparsity, overrides or {})
        self._data = None if calibration is None else Calibration(calibration, loss, memory)
        self._step = 0
        self._finished = False
        self._masks: Masks = {
            layer.name: torch.ones(layer.shape, dtype=torch.bool, device=layer.weight.device) for layer in self.layers
        }
        if self.schedule.due(0):
            self._remove(0)

    @property
    def done(self) -> bool:
        """Whether the final sparsity is reached."""
        return self._step >= self.schedule.steps

    def masks(self) -> Masks:
        """By the layer's name: which weights stay, bool ``[out, in]``; copies."""
        return {name: mask.clone() for name, mask in self._masks.items()}

    def step(self) -> None:
        """Call it after every optimiser step: removes what is due and puts back zeros that the optimiser moved.

        Raises:
            PruneError: after :meth:`finish`.
        """
        if self._finished:
            raise PruneError("the pruner is finished; make a new one to go on")
        self._step += 1
        self._enforce()
        if self._step <= self.schedule.steps and self.schedule.due(self._step):
            self._remove(self._step)

    def finish(self, *, force: bool = False) -> PruneResult:
        """End the pruning: the weights hold true zeros, and nothing else of it is left.

        Args:
            force: where the schedule is not done yet, remove the rest now; the model then had no training after it.

        Raises:
            PruneError: the schedule is not done and ``force`` is not set, or it was called before.
        """
        if self._finished:
            raise PruneError("the pruner is finished already")
        if not self.done:
            if not force:
                raise PruneError(
                    f"the schedule ends at step {self.schedule.steps}, step() was called {self._step} times; "
                    "train on, or finish(force=True) removes the rest now"
                )
            self._enforce()
            self._remove(self.schedule.steps)
        self._enforce()
        self._finished = True
        layers = tuple(
            PrunedLayer(layer.name, layer.weight.numel(), int((layer.weight == 0).sum()), self.sparsities[layer.name])
            for layer in self.layers
        )
        self._masks = {}
        return PruneResult(layers, self.skipped)

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on after a restart, beside the state of the model and of the optimiser."""
        return {"step": self._step, "masks": self.masks()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another pruner of the same settings stopped; removed weights become zero at once.

        Raises:
            PruneError: the state's layers or shapes are not those of this model.
        """
        masks: Mapping[str, Tensor] = state["masks"]
        if {name: mask.shape for name, mask in masks.items()} != {n: m.shape for n, m in self._masks.items()}:
            raise PruneError("the state belongs to a model with other layers")
        self._masks = {name: mask.to(self._masks[name].device, copy=True) for name, mask in masks.items()}
        self._step = int(state["step"])
        self._enforce()

    def _remove(self, step: int) -> None:
        part = self.schedule.part(step)
        counts = {layer.name: count_of(layer, self.pattern, self.sparsities[layer.name], part) for layer in self.layers}
        with sharding.gathered(self.model):
            self._masks = choose(
                self.model,
                self.layers,
                self.criterion,
                self.pattern,
                self.scope,
                counts,
                self._masks,
                self._data,
                self._alone,
            )
        self._enforce()

    def _enforce(self) -> None:
        for layer in self.layers:
            zero(layer, self._masks[layer.name])


def _scope(scope: Scope | Literal["auto"], criterion: Criterion) -> Scope:
    if scope == "auto":
        return criterion.scope
    if scope not in ("row", "layer", "global"):
        raise PruneError(f"unknown scope {scope!r}; known: auto, row, layer, global")
    if criterion.updates and scope != "layer":
        raise PruneError(f"{criterion.name} prunes layer by layer; scope {scope!r} is not possible")
    return scope


def _sparsities(
    layers: Sequence[PrunableLayer], pattern: Pattern, sparsity: float | None, overrides: Mapping[str, float]
) -> tuple[dict[str, float], frozenset[str]]:
    """Each layer's own sparsity, and the layers that have it from an override."""
    if sparsity is None:
        sparsity = pattern.sparsity
    if sparsity is None:
        raise PruneError(f"the pattern {pattern} needs a sparsity")
    names = [layer.name for layer in layers]
    for key in overrides:
        if matches(names, [key]) is None:
            raise PruneError(f"the override {key!r} matches none of the layers: {', '.join(names)}")
    found, alone = {}, set()
    for name in names:
        wildcard = matches([name], overrides)
        if wildcard is not None:
            alone.add(name)
        value = sparsity if wildcard is None else overrides[wildcard]
        if not 0 <= value <= 1:
            raise PruneError(f"{name}: the sparsity {value} is not between 0 and 1")
        if pattern.sparsity is not None and value and abs(value - pattern.sparsity) > 1e-6:
            raise PruneError(f"{name}: the pattern {pattern} has the sparsity {pattern.sparsity:.6g}, not {value}")
        found[name] = value
    return found, frozenset(alone)

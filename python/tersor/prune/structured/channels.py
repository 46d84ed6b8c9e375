"""Removing channels, neurons, heads and recurrent units for good, with everything that is coupled to them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import nn

from tersor import structure
from tersor.errors import PruneError
from tersor.prune.calibration import Calibration, Loss
from tersor.prune.criteria import Criterion, make_criterion
from tersor.prune.layers import matches
from tersor.prune.structured import groups as grouping
from tersor.prune.structured import plan
from tersor.prune.structured.edits import apply
from tersor.prune.structured.groups import Group
from tersor.prune.structured.indices import Ids
from tersor.prune.structured.result import ChannelResult, GroupRow
from tersor.prune.structured.score import score_units
from tersor.prune.structured.trace import Coupling, trace
from tersor.structure.checks import listed

MOST = 0.95
"""No group loses a larger part."""

Target = Literal["parameters", "flops", "latency"]


def prune_channels(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    target: Mapping[Target, float] | None = None,
    criterion: str | Criterion = "magnitude",
    scope: Literal["layer", "global"] = "layer",
    overrides: Mapping[str, float] | None = None,
    round_to: int = 8,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    width: bool = False,
    calibration: Iterable[Any] | None = None,
    loss: Loss | None = None,
) -> ChannelResult:
    """Makes layers of ``model`` narrower, in place, for good.

    Channels of convolutions, neurons of linear layers (feed-forward width among them), attention heads, and units of
    LSTM and GRU leave, with all tensors that are coupled to them.

    The couplings are found by running the model once (docs/structured.md). The example input runs through the result
    before this returns. What the model takes and returns keeps its size; so do layers whose coupling is not understood,
    which the result lists with the reason. The parameters are new objects: make optimisers afterwards.

    Args:
        model: changed in place; on any failure it is as before.
        example_inputs: what the model is usually given: a tensor, a tuple or list of arguments, or a mapping of keyword
            arguments. Works on the CPU.
        ratio: the part of the units of each group to remove, in [0, 1).
        target: instead of ``ratio``, what may be left, as a part of the model: ``{"parameters": 0.5}``,
            ``{"flops": 0.5}`` (of the example input) or ``{"latency": 0.5}`` (measured here). The smallest ratio that
            reaches it is taken.
        criterion: a name in ``tersor.prune.CRITERIA`` or a criterion: its scores are summed over each unit's weights.
            ``entropy``, ``wanda`` and ``sparsegpt`` look at the values of each unit, on ``calibration`` data.
        scope: ``"layer"``: every group loses the same part; ``"global"``: the least of all groups leave.
        overrides: shell wildcard on names of layers -> the ratio of their groups; 0 keeps them whole.
        round_to: what is left of a layer is a multiple of it, where the layer has that many outputs.
        include, exclude: shell wildcards on layer names. A group is narrowed if all layers that make it are included
            and none is excluded.
        width: also narrow what embeddings make: the width of a whole transformer.
        calibration: batches for criteria that look at data; None: the example inputs.
        loss: ``loss(model, batch)`` for ``gradient`` and ``fisher``.

    Returns:
        What was removed and what stays for which reason.

    Raises:
        PruneError: nothing can be removed, a target can't be reached, data are missing, or a value is out of range.
    """
    _check(ratio, target, overrides or {}, round_to)
    judge = make_criterion(criterion)
    try:
        coupling = trace(model, example_inputs)
    except Exception as error:
        raise PruneError(f"the model failed on the example input: {type(error).__name__}: {error}") from error
    found, fixed = grouping.find_groups(model, coupling)
    chosen, left = _selected(model, found, include, exclude, width)
    if not chosen:
        why = listed({**left, **fixed})
        raise PruneError(f"nothing can be removed. {why or 'The model has no layers that feed each other'}")
    data = Calibration(calibration if calibration is not None else [example_inputs], loss)
    scores = score_units(model, coupling, chosen, judge, data if judge.needs != "nothing" else None)
    job = _Job(
        model, coupling, example_inputs, list(zip(chosen, scores, strict=True)), overrides or {}, round_to, scope
    )
    part = ratio if ratio is not None else job.ratio_for(*next(iter((target or {}).items())))
    before = _sizes(model, coupling, np.zeros(0, dtype=np.int64))
    removed, refused = job.remove(part)
    after = _sizes(model, coupling, removed, done=True)
    rows = [
        GroupRow(
            group.layers,
            group.kind,
            len(group.units),
            int((~np.isin(group.units, removed)).sum()),
            refused.get(group.name),
        )
        for group in chosen
    ]
    return ChannelResult(tuple(rows), {**fixed, **left}, part, *before, *after)


def _sizes(model: nn.Module, coupling: Coupling, removed: Ids, *, done: bool = False) -> tuple[int, int]:
    count = sum(parameter.numel() for parameter in model.parameters())
    return count if done else grouping.parameters(model, coupling, removed), grouping.work(coupling, removed)


def _check(
    ratio: float | None, target: Mapping[Any, float] | None, overrides: Mapping[str, float], round_to: int
) -> None:
    if (ratio is None) == (target is None):
        raise PruneError("give either ratio or target")
    values = {"ratio": ratio or 0.0, **overrides}
    for name, value in values.items():
        if not math.isfinite(value) or not 0 <= value < 1:
            raise PruneError(f"{name}: {value} is not a ratio in [0, 1)")
    if target is not None:
        known = ("parameters", "flops", "latency")
        if len(target) != 1 or next(iter(target)) not in known or not 0 < next(iter(target.values())) <= 1:
            raise PruneError(f"target must be one of {', '.join(known)} and a part in (0, 1], got {dict(target)}")
    if round_to < 1:
        raise PruneError(f"round_to must be at least 1, got {round_to}")


def _selected(
    model: nn.Module, found: Sequence[Group], include: Sequence[str], exclude: Sequence[str], width: bool
) -> tuple[list[Group], dict[str, str]]:
    names = [name for name, _ in model.named_modules()]
    for kind, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if matches(names, [pattern]) is None:
                raise PruneError(f"{kind} pattern {pattern!r} matches no module of the model")
    chosen: list[Group] = []
    left: dict[str, str] = {}
    for group in found:
        excluded = matches(group.layers, exclude)
        if excluded is not None:
            left[group.name] = f"excluded by {excluded!r}"
        elif include and not all(matches([layer], include) for layer in group.layers):
            left[group.name] = f"not included, or coupled to others: {', '.join(group.layers[:5])}"
        elif group.kind == "width" and not width:
            left[group.name] = "it is the width of the whole model, which only width=True narrows"
        else:
            chosen.append(group)
    return chosen, left


class _Job:
    """One pruning: what can go, and how far."""

    def __init__(
        self,
        model: nn.Module,
        coupling: Coupling,
        inputs: Any,
        scored: list[tuple[Group, Any]],
        overrides: Mapping[str, float],
        round_to: int,
        scope: str,
    ) -> None:
        self.model, self.coupling, self.inputs, self.scored = model, coupling, inputs, scored
        self.overrides, self.round_to, self.together = overrides, round_to, scope == "global"
        self.groups = [group for group, _ in scored]

    def units(self, ratio: float) -> Ids:
        """What goes at a ratio."""
        return plan.choose(self.scored, ratio, self.overrides, self.round_to, together=self.together, most=MOST)

    def ratio_for(self, kind: str, target: float) -> float:
        """The smallest ratio that reaches a target."""
        nothing = np.zeros(0, dtype=np.int64)
        count, work = grouping.parameters(self.model, self.coupling, nothing), grouping.work(self.coupling, nothing)
        measures: dict[str, Callable[[float], float]] = {
            "parameters": lambda ratio: grouping.parameters(self.model, self.coupling, self.units(ratio)) / count,
            "flops": lambda ratio: grouping.work(self.coupling, self.units(ratio)) / max(work, 1),
            "latency": self._latency,
        }
        return plan.search(measures[kind], target, MOST)

    def _latency(self, ratio: float) -> float:
        from tersor.benchmark import benchmark

        other = copy.deepcopy(self.model)
        apply(other, self.coupling, self.units(ratio), self.groups, self.inputs)
        flags = {module: module.training for module in self.model.modules()}
        try:
            found = benchmark(self.model.eval(), other.eval(), self.inputs, rounds=7, warmup=1)
        finally:
            for module, flag in flags.items():
                module.training = flag
        return 1 / found.ratio

    def remove(self, ratio: float) -> tuple[Ids, dict[str, str]]:
        """Removes units; groups that fail alone stay whole. Returns what went, and why groups stayed."""
        removed = self.units(ratio)
        if not len(removed):
            return removed, {}
        try:
            apply(self.model, self.coupling, removed, self.groups, self.inputs)
            return removed, {}
        except PruneError:
            refused = self._try_each(removed)
        rest = [group for group in self.groups if group.name not in refused]
        removed = np.concatenate([removed[:0], *(removed[np.isin(removed, group.units)] for group in rest)])
        if not len(removed):
            raise PruneError(f"nothing can be removed. {listed(refused)}")
        apply(self.model, self.coupling, removed, self.groups, self.inputs)
        return removed, refused

    def _try_each(self, removed: Ids) -> dict[str, str]:
        refused: dict[str, str] = {}
        for group in self.groups:
            own = removed[np.isin(removed, group.units)]
            saved = structure.Snapshot(self.model)
            try:
                if len(own):
                    apply(self.model, self.coupling, own, self.groups, self.inputs)
            except PruneError as error:
                refused[group.name] = str(error)
            finally:
                saved.restore()
        return refused

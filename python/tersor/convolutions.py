"""The stage of a recipe that turns convolutions into int8 graphs, before linear layers are looked at."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from tersor import modules
from tersor.conversion import Conversion
from tersor.errors import RecipeError, SwapError
from tersor.quantize.batches import Limited, limited
from tersor.report import LayerRow
from tersor.selection import matches

if TYPE_CHECKING:
    from tersor.convnet.convert import Graph, Part
    from tersor.steps.quantize import Quantize


def convert_convolutions(conversion: Conversion) -> None:
    """Put int8 graphs in the place of convolutions where the quantize step asks for int8 with static activations."""
    run, step = conversion.run, conversion.quantize
    if step is None or step.activations != "static" or step.weights != "int8":
        return
    if not any(isinstance(module, nn.Conv2d) for module in run.model.modules()):
        return
    from tersor.convnet import Int8Network, quantize_convnet
    from tersor.convnet.correct import CORRECTIONS

    if run.calibration is None:
        raise RecipeError('activations = "static" needs calibration data: pass calibration=')
    if iter(run.calibration) is run.calibration:
        run.calibration = list(limited(run.calibration, step.samples))
    if run.model is run.teacher:
        run.model = _copy(run.teacher)
    names = [name for name, _ in run.model.named_modules()]
    sizes = {name: modules.memory_bytes(module) for name, module in run.model.named_modules()}
    corrections = tuple(name for name in dict.fromkeys(("bias", *step.corrections)) if name in CORRECTIONS)
    converted = quantize_convnet(
        run.model,
        Limited(run.calibration, step.samples),
        observer=step.observer,
        smooth=step.smooth,
        corrections=corrections,
        selected=run.selected,
        force=run.force,
        progress=run.progress,
    )
    for part in converted.parts:
        if not part.shapes:
            reason = "never called on the first batch of the calibration data"
            conversion.rows[nn.Module()] = _kept(part.path or "(model)", reason)
            continue
        for made in part.graphs:
            key = made.graph if made.taken else nn.Module()
            conversion.rows[key] = _row(part, made, sizes[part.path])
        for what, reason in part.islands():
            if "linear" not in reason:  # linear layers have rows of their own
                conversion.rows[nn.Module()] = _kept(what, reason)
    for name in converted.untraced:
        conversion.rows[nn.Module()] = _kept(name, "torch.fx can't trace the code around it")
    conversion.graphs = len(converted.graphs)
    run.notes.append(_note(step, corrections))
    if isinstance(run.model, Int8Network):  # names begin with "body." now; a pattern of what is gone says nothing
        now = [name for name, _ in run.model.named_modules()]
        run.include, run.exclude = (_renamed(patterns, names, now) for patterns in (run.include, run.exclude))


def _note(step: Quantize, corrections: Sequence[str]) -> str:
    others = [name for name in step.corrections if name not in corrections]
    rest = f"; {', '.join(others)} would need linear layers" if others else ""
    return (
        f"convolutions: ranges by {step.observer}, smooth {step.smooth:g}, corrections {', '.join(corrections)}{rest}"
    )


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise SwapError(f"the model can't be deep-copied ({type(error).__name__}: {error})") from error


def _renamed(patterns: Sequence[str], before: Sequence[str], now: Sequence[str]) -> tuple[str, ...]:
    renamed = [f"body.{pattern}" if matches(before, [pattern]) else pattern for pattern in patterns]
    kept = tuple(new for new, old in zip(renamed, patterns, strict=True) if new == old or matches(now, [new]))
    return kept or (("body",) if patterns else ())


def _row(part: Part, made: Graph, part_bytes: int) -> LayerRow:
    kinds = [unit.kind for unit in made.segment.units if unit.kind != "same"]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("conv", "pool", "add") if kind in kinds)
    first, last = made.segment.units[0].nodes[0], made.segment.result
    verdict = made.verdict
    weights = sum(unit.conv.weight.nbytes for unit in made.segment.units if unit.conv is not None)
    return LayerRow(
        name=made.name or part.path or "(model)",
        kind=f"{first.name} to {last.name}: {counts}",
        action="swapped" if made.taken else "kept",
        reason=verdict.reason if verdict is not None else "swapped without a measurement (force=True)",
        shape=None,
        bytes_before=min(weights, part_bytes),
        bytes_after=modules.memory_bytes(made.graph) if made.taken else min(weights, part_bytes),
        rows=tuple(verdict.float_us) if verdict is not None else (),
        float_us=dict(verdict.float_us) if verdict is not None else {},
        tersor_us=dict(verdict.tersor_us) if verdict is not None else {},
        forced=verdict is None,
        layer="Int8Graph" if made.taken else None,
    )


def _kept(what: str, reason: str) -> LayerRow:
    return LayerRow(
        name=what, kind="float operation", action="kept", reason=reason, shape=None, bytes_before=0, bytes_after=0
    )

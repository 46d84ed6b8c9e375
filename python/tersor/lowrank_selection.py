"""Deciding, for each factored layer of a model, whether it runs fused, in float32 or int8, or as two float products."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tersor.factorize.factored_linear import FactoredLinear
from tersor.modules import Candidate
from tersor.nn import LowRankInt8Linear, LowRankLinear
from tersor.nn.packed_linear import PackedLinear
from tersor.progress import track
from tersor.selection import Choice, matches, open_choices
from tersor.tune_lowrank import LowRankTuner

FUSED: dict[str, type[PackedLinear]] = {"lowrank": LowRankLinear, "lowrank_int8": LowRankInt8Linear}
"""The layer for a FactoredLinear by the kind of a choice."""


def choose_factored(model: nn.Module, include: Sequence[str], exclude: Sequence[str], quantised: bool) -> list[Choice]:
    """A choice for every FactoredLinear after the patterns and refusals."""
    names: dict[int, list[str]] = {}
    found: dict[int, FactoredLinear] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) is FactoredLinear:
            names.setdefault(id(module), []).append(name)
            found[id(module)] = module
    choices = []
    for key, module in found.items():
        own = tuple(names[key])
        reason = (LowRankInt8Linear if quantised else LowRankLinear).reason_against(module)
        if (pattern := matches(own, exclude)) is not None:
            reason = f"excluded by {pattern!r}"
        elif include and matches(own, include) is None:
            reason = "not included"
        kind = "lowrank_int8" if quantised else "lowrank"
        choices.append(Choice(Candidate(own, module, None), reason, dtype=module.weight_up.dtype, kind=kind))
    return choices


def judge_factored(choices: Sequence[Choice], *, force: bool, progress: bool) -> None:
    """Measure every open choice on this host and close those that fused kernels do not speed up; or force them all."""
    tuner = None if force else LowRankTuner()
    for choice in track(open_choices(choices), "measuring layers", shown=progress and not force):
        if tuner is None:
            choice.forced = True
            continue
        module = choice.candidate.module
        assert isinstance(module, FactoredLinear)
        try:
            choice.verdict = tuner.judge_factored(module, choice.rows, choice.dtype, choice.kind == "lowrank_int8")
        except ValueError as error:
            choice.reason = f"can't be converted: {error}"
            continue
        if not choice.verdict.faster:
            choice.reason = choice.verdict.reason

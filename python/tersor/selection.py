"""Deciding, layer by layer, what is replaced: patterns, refusals, measurements."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tersor.errors import SwapError
from tersor.factorize.factored_linear import FactoredLinear
from tersor.modules import Candidate, find_candidates
from tersor.observe import Seen
from tersor.progress import track
from tersor.quantize.codebooks import Codes
from tersor.tune import Tuner, Verdict

# What is replaced by other means than a Choice.
_OTHERS = (FactoredLinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Embedding, nn.EmbeddingBag)

ALL_ROWS = (1, 4, 16, 64, 256)
"""The numbers of rows a layer is judged for where nothing better is known."""


@dataclass
class Choice:
    """What is to become of one candidate.

    Attributes:
        candidate: the layer.
        reason: why it is kept; None as long as it may be swapped.
        rows: the numbers of rows to judge it for.
        dtype: the dtype of its input.
        x_scale, x_zero_point: static input range; scale 0 means dynamic.
        input_scale: float32 [in_features] to smooth with; None means no smoothing.
        seen: what it was given when the model was run; None where it was not.
        verdict: the measurement, where one was made.
        forced: swapped without a measurement.
        codes, bias: the integers of its weight and what is added to its bias, where they are more than rounded to int8.
        kind: what it becomes: "int8", or "sparse_int8" or "sparse" where it was pruned.
        pattern, sparsity: how its zeros lie and the part of its weights that is 0, where it was pruned.
        remark: what other patterns or sparsities would do, in words.
    """

    candidate: Candidate
    reason: str | None
    rows: tuple[int, ...] = ALL_ROWS
    dtype: torch.dtype = torch.float32
    x_scale: float = 0.0
    x_zero_point: int = 0
    input_scale: Tensor | None = None
    seen: Seen | None = None
    verdict: Verdict | None = None
    forced: bool = False
    codes: Codes | None = None
    bias: Tensor | None = None
    kind: str = "int8"
    pattern: str | None = None
    sparsity: float | None = None
    remark: str | None = None


def choose(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str], untie: bool
) -> tuple[list[Choice], list[str]]:
    """A choice for every linear layer after patterns and refusals, and the warnings about the patterns.

    Raises:
        SwapError: an include pattern matches no module.
    """
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    candidates = find_candidates(model, untie=untie)
    others = [name for name, module in model.named_modules() if isinstance(module, _OTHERS)]
    warnings = _check_patterns(names, candidates, others, include, exclude)
    choices = []
    for candidate in candidates:
        weight = candidate.module._parameters.get("weight")
        dtype = torch.float32 if weight is None else weight.dtype
        reason = _pattern_reason(candidate, include, exclude) or candidate.refusal
        choices.append(Choice(candidate, reason, dtype=dtype))
    return choices, warnings


def open_choices(choices: Iterable[Choice]) -> list[Choice]:
    """The choices that nothing speaks against so far."""
    return [choice for choice in choices if choice.reason is None]


def judge(
    choices: Iterable[Choice],
    *,
    force: bool,
    progress: bool,
    measured: Callable[[Choice], Verdict] | None = None,
) -> None:
    """Measure every open choice on this host and close those whose float layer is as fast; or force them all.

    Args:
        measured: the verdict on a choice; None: float against int8.
    """
    pending = open_choices(choices)
    if measured is None and not force:
        measured = _int8_verdict(Tuner())
    for choice in track(pending, "measuring layers", shown=progress and not force):
        if force or measured is None:
            choice.forced = True
            continue
        try:
            choice.verdict = measured(choice)
        except ValueError as error:
            choice.reason = f"can't be converted: {error}"
            continue
        if not choice.verdict.faster:
            choice.reason = choice.verdict.reason


def _int8_verdict(tuner: Tuner) -> Callable[[Choice], Verdict]:
    return lambda choice: tuner.judge(choice.candidate.module, choice.rows, choice.dtype)


def convert(choices: Iterable[Choice], build: Callable[[Choice], None], progress: bool) -> None:
    """Call ``build`` for every open choice; a ValueError closes the choice with its message as the reason."""
    for choice in track(open_choices(choices), "converting layers", shown=progress):
        try:
            build(choice)
        except ValueError as error:
            choice.reason = f"can't be converted: {error}"


def require_any(choices: Sequence[Choice]) -> None:
    """Check that something is left to swap.

    Raises:
        SwapError: nothing is; the message lists every layer under the reason that kept it.
    """
    if not open_choices(choices):
        raise SwapError(why_none(choices))


def why_none(choices: Sequence[Choice]) -> str:
    """Why no layer was swapped: every layer under the reason that kept it."""
    if not choices:
        return "no layer was swapped: the model holds no linear layer (nn.Linear or transformers' Conv1D)"
    reasons: dict[str, list[str]] = {}
    for choice in choices:
        reasons.setdefault(str(choice.reason), []).append(choice.candidate.name)
    lines = [f"  {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    slower = any(choice.verdict is not None for choice in choices)
    hint = ["Layers that are not faster on this host can still be swapped with force=True."] if slower else []
    return "\n".join(["no layer was swapped. Why each one was kept:", *lines, *hint])


def matches(names: Iterable[str], patterns: Iterable[str]) -> str | None:
    """The first pattern that matches one of the names, else None."""
    return next((pattern for pattern in patterns for name in names if fnmatchcase(name, pattern)), None)


def _pattern_reason(candidate: Candidate, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    if (pattern := matches(candidate.names, exclude)) is not None:
        return f"excluded by {pattern!r}"
    if include and matches(candidate.names, include) is None:
        return "not included"
    return None


def _check_patterns(
    names: Sequence[str],
    candidates: Sequence[Candidate],
    others: Sequence[str],
    include: Sequence[str],
    exclude: Sequence[str],
) -> list[str]:
    linear = [*(name for candidate in candidates for name in candidate.names), *others]
    warnings = []
    for kind, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if matches(linear, [pattern]):
                continue
            close = difflib.get_close_matches(pattern, names, n=3)
            below = matches(linear, [f"{pattern}.*"])
            hint = f"; did you mean {below!r}" if below else f"; closest names: {', '.join(close)}" if close else ""
            if matches(names, [pattern]):
                warnings.append(f"{kind} pattern {pattern!r} matches modules but no layer that can be replaced{hint}")
            elif kind == "include":
                raise SwapError(f"include pattern {pattern!r} matches no module of the model{hint}")
            else:
                warnings.append(f"exclude pattern {pattern!r} matches no module of the model{hint}")
    return warnings

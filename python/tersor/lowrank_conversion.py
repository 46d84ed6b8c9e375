"""What becomes of the factored layers of a model in a conversion."""

from __future__ import annotations

from tersor import observe
from tersor.lowrank_selection import choose_factored, judge_factored
from tersor.pipeline import Run
from tersor.selection import Choice


def factored_choices(run: Run, quantised: bool) -> list[Choice]:
    """A choice for each, judged for what the inputs bring to it: fused, in int8 where ``quantised``, or left alone."""
    choices = choose_factored(run.model, run.include, run.exclude, quantised)
    if run.inputs and choices:
        seen = observe.observe_rows(run.model, [choice.candidate.module for choice in choices], *run.inputs)
        for choice in choices:
            entry = seen.get(id(choice.candidate.module))
            if entry is not None and entry.rows:
                choice.rows, choice.dtype = tuple(sorted(entry.rows)), entry.dtype
    judge_factored(choices, force=run.force, progress=run.progress)
    return choices

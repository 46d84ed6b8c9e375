"""The stage of a conversion that runs factored layers fused."""

from __future__ import annotations

from tersor import observe
from tersor.conversion import Conversion
from tersor.lowrank_selection import choose_factored, judge_factored
from tersor.selection import Choice, convert
from tersor.swap import layer_row, replacement


def convert_factored(conversion: Conversion) -> None:
    """Replace factored layers by fused ones: int8 where the recipe quantises, else float32."""
    run = conversion.run
    choices = choose_factored(run.model, run.include, run.exclude, conversion.quantize is not None)
    if run.inputs and choices:
        seen = observe.observe_rows(run.model, [choice.candidate.module for choice in choices], *run.inputs)
        for choice in choices:
            entry = seen.get(id(choice.candidate.module))
            if entry is not None and entry.rows:
                choice.rows, choice.dtype = tuple(sorted(entry.rows)), entry.dtype
    judge_factored(choices, force=run.force, progress=run.progress)
    conversion.choices += choices

    def build(choice: Choice) -> None:
        old = choice.candidate.module
        conversion.replacements[old], conversion.names[old] = replacement(choice), choice.candidate.names

    convert(choices, build, run.progress)
    for choice in choices:
        old = choice.candidate.module
        conversion.rows[old] = layer_row(choice, conversion.replacements.get(old))

"""Replacing the layers of a model by accelerated ones, after the steps of a recipe that edit it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from tersor.block_conversion import BlockConversion
from tersor.blocks import Blocks, find_blocks, watching
from tersor.calibrate import fit, look_at_inputs, smoothing_note
from tersor.lowrank_conversion import factored_choices
from tersor.lowrank_selection import FUSED
from tersor.pipeline import Run
from tersor.quantization import judge_codes, solve_weights
from tersor.report import LayerRow
from tersor.selection import Choice, choose, convert, open_choices
from tersor.sparse_selection import judge_pruned
from tersor.steps import Quantize
from tersor.swap import layer_row, replacement


@dataclass
class Conversion:
    """What the stages of a conversion share.

    Attributes:
        run: the recipe under way; its model is read, not changed.
        quantize: the step that asks for small integers, or None.
        pattern: how the zeros of pruned layers lie, or None: nothing was pruned.
        replacements: float layer -> what stands for it in the result.
        names: float layer -> its qualified names, of all that are replaced.
        rows: float layer -> its row in the report, of all that were looked at.
        choices: what was decided about linear layers.
        graphs: how many int8 graphs stand for convolutions; they are in the model already.
    """

    run: Run
    quantize: Quantize | None
    pattern: str | None
    replacements: dict[nn.Module, nn.Module] = field(default_factory=dict)
    names: dict[nn.Module, tuple[str, ...]] = field(default_factory=dict)
    rows: dict[nn.Module, LayerRow] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    graphs: int = 0

    def row_of(self, choice: Choice) -> LayerRow:
        """The row of a choice about a linear layer."""
        return layer_row(choice, self.replacements.get(choice.candidate.module))


def convert_linear(conversion: Conversion) -> None:
    """Replace linear layers: by int8 ones, or where they were pruned by the fastest of sparse and dense ones.

    Factored layers become fused ones, and encoder blocks whose layers are all replaced become one layer.
    """
    run, quantize = conversion.run, conversion.quantize
    choices, warnings = choose(run.model, run.include, run.exclude, run.untie)
    factored = factored_choices(run, quantize is not None)
    conversion.choices += [*choices, *factored]
    run.warnings += warnings
    step = quantize or Quantize(smooth=0)
    blocks = find_blocks(run.model, [*choices, *factored]) if quantize is not None and step.blocks else Blocks()
    with watching(blocks.blocks):
        batches = run.calibration if quantize else None
        source = look_at_inputs(run.model, choices, step, run.inputs, batches, run.progress)
    settings = {"force": run.force, "progress": run.progress}
    if conversion.pattern is not None:
        judge_pruned(choices, conversion.pattern, quantised=quantize is not None, **settings)
    elif quantize is not None:
        judge_codes(choices, quantize, **settings)
    for choice in open_choices(choices) if quantize is None and conversion.pattern is None else ():
        choice.reason = "no step of the recipe replaces it"

    solved = quantize is not None and solve_weights(run, choices, quantize)
    if step.activations == "static":
        blocks.close("its layers have static ranges, and a block measures its own")
    whole = BlockConversion(blocks, **settings)
    shared = set() if solved else whole.share_smoothing(step)

    def build(choice: Choice) -> None:
        if not solved and id(choice) not in shared and choice.kind not in FUSED:
            fit(choice, step)
        choice.seen = None  # its rows are not needed any more
        old = choice.candidate.module
        conversion.replacements[old], conversion.names[old] = replacement(choice), choice.candidate.names
        if (made := whole.assembled(choice, conversion.replacements)) is not None:
            block, new = made
            for member in block.swapped.values():
                del conversion.replacements[member.candidate.module], conversion.names[member.candidate.module]
            conversion.replacements[block.module], conversion.names[block.module] = new, block.names

    convert([*choices, *factored], build, run.progress)
    conversion.rows |= whole.ordered([*choices, *factored], conversion.row_of)
    run.notes += whole.notes()
    if (note := smoothing_note(step, choices, source)) is not None:
        run.notes.insert(0, note)

"""Putting the swapped layers of encoder blocks together, so that each block runs in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import nn

from tersor import modules
from tersor.blocks import Block, Blocks, close_unfit
from tersor.calibrate import fit
from tersor.nn import EncoderBlock
from tersor.nn.float_linear import weight_matrix
from tersor.progress import track
from tersor.report import LayerRow
from tersor.report.wording import family, joined
from tersor.selection import Choice
from tersor.steps import Quantize
from tersor.tune_block import BlockTuner, BlockVerdict

NOTE = (
    "encoder blocks give zeros at positions of padding; in training, with hooks inside, with attention weights as an "
    "output and with masks that differ between queries they run their float code on dequantised weights"
)


class BlockConversion:
    """The encoder blocks of a model on their way from converted layers to one call.

    Args:
        blocks: those of the model, with the choices about their layers made.
    """

    def __init__(self, blocks: Blocks, *, force: bool, progress: bool) -> None:
        self.blocks = blocks
        self.rows: dict[int, LayerRow] = {}  # by the id of their block
        self._verdicts: dict[int, BlockVerdict] = {}
        close_unfit(blocks)
        self._judge(force, progress)
        self._owner = {id(choice): block for block in blocks.open for choice in block.members.values()}

    def _judge(self, force: bool, progress: bool) -> None:
        tuner = None if force else BlockTuner()
        for block in track(self.blocks.open, "measuring blocks", shown=progress and not force):
            if tuner is None:
                continue
            try:
                found = tuner.judge_block(block, _dtype(block))
            except ValueError as error:
                block.reason = f"can't be converted: {error}"
                continue
            self._verdicts[id(block)] = found
            block.reason = None if found.faster else found.reason

    def share_smoothing(self, step: Quantize) -> set[int]:
        """Give queries, keys and values of each block one smoothing, fitted to all three; the ids of their choices."""
        shared = set()
        for block in self.blocks.open:
            choices = [block.members[path] for path in block.found.anatomy.qkv if path in block.members]
            dense = [choice for choice in choices if choice.kind != "lowrank_int8"]
            if len(choices) == 3 and dense:
                fit(dense[0], step, torch.cat([weight_matrix(choice.candidate.module) for choice in choices]))
                for choice in dense:
                    choice.input_scale = dense[0].input_scale
                    shared.add(id(choice))
        return shared

    def assembled(self, choice: Choice, layers: Mapping[nn.Module, nn.Module]) -> tuple[Block, EncoderBlock] | None:
        """The block that ``choice`` completes, made of ``layers`` (float layer -> its replacement), if there is one."""
        block = self._owner.get(id(choice))
        if block is None or block.reason is not None:
            return None
        members = {path: layers.get(member.candidate.module) for path, member in block.swapped.items()}
        ready = {path: layer for path, layer in members.items() if layer is not None}
        if len(ready) < len(members):
            return None
        before = modules.memory_bytes(block.module)
        try:
            made = EncoderBlock.from_layers(block.module, ready)
        except ValueError as error:
            block.reason = str(error)
            return None
        made._tersor_name = block.names[0]
        self.rows[id(block)] = self._row(block, made, before)
        return block, made

    def waits(self, layer: nn.Module) -> bool:
        """Whether a float layer belongs to a block that is still to be put together."""
        return any(
            block.reason is None and id(block) not in self.rows
            for block in self.blocks.blocks
            for choice in block.members.values()
            if choice.candidate.module is layer
        )

    def release(self, choices: Iterable[Choice], old: nn.Module, new: nn.Module) -> None:
        """Let go of a float layer or block that was replaced in its model."""
        members = [*choices]
        for block in self.blocks.blocks:
            if block.module is old:
                block.module, members = new, [*block.members.values()]
                break
        else:
            members = [choice for choice in members if choice.candidate.module is old]
        for choice in members:
            choice.candidate = modules.Candidate(choice.candidate.names, new, None)

    def _row(self, block: Block, made: EncoderBlock, before: int) -> LayerRow:
        found = self._verdicts.get(id(block))
        verdict = None if found is None else found.verdict
        return LayerRow(
            name=block.name,
            kind=block.module.__class__.__name__,
            action="swapped",
            reason=found.reason if found else "swapped without a measurement (force=True)",
            shape=None,
            bytes_before=before,
            bytes_after=modules.memory_bytes(made),
            aliases=block.names[1:],
            rows=() if verdict is None else tuple(sorted(verdict.float_us)),
            float_us={} if verdict is None else dict(verdict.float_us),
            tersor_us={} if verdict is None else dict(verdict.tersor_us),
            forced=found is None,
            layer="EncoderBlock",
            parts=made.describe_products(),
            layers=len(block.members),
        )

    def ordered(self, choices: Iterable[Choice], row_of: Callable[[Choice], LayerRow]) -> dict[nn.Module, LayerRow]:
        """The rows of all layers in the model's order, with one for each block instead of those of its layers."""
        rows: dict[nn.Module, LayerRow] = {}
        for choice in choices:
            block = self._owner.get(id(choice))
            if block is not None and id(block) in self.rows:
                rows[block.module] = self.rows[id(block)]
            else:
                rows[choice.candidate.module] = row_of(choice)
        return rows

    def notes(self) -> list[str]:
        """What the report should say about blocks beside their rows."""
        kept: dict[str, list[str]] = {}
        for block in self.blocks.blocks:
            if block.reason is not None:
                kept.setdefault(f"{type(block.module).__name__}: {block.reason}", []).append(block.name)
        for name, why in self.blocks.others.items():
            kept.setdefault(why, []).append(name)
        notes = [NOTE] if self.rows else []
        return notes + [f"layers stay apart in {_listed(names)}, {why}" for why, names in kept.items()]


def _dtype(block: Block) -> torch.dtype:
    return next((choice.dtype for choice in block.swapped.values()), torch.float32)


def _listed(names: Sequence[str]) -> str:
    """Names that differ in numbers only as one, such as ``encoder.layer.{0..5}``."""
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(family(name), []).append(name)
    return ", ".join(joined(members) for members in families.values())

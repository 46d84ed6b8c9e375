"""Is an encoder block in one call faster than the block with its layers swapped? Measured as in tersor.tune."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersor import observe, text
from tersor.benchmark import torch_threads
from tersor.blocks import USUAL_SHAPES, Block, close_unfit, find_blocks, watching
from tersor.encoder.family import argument_names
from tersor.modules import HOOKS, Candidate
from tersor.nn import EncoderBlock, Int8Linear, LowRankInt8Linear, SparseInt8Linear
from tersor.progress import track
from tersor.selection import Choice
from tersor.tune import MARGIN, Tuner, Verdict, race
from tersor.tune_cache import Times
from tersor.tune_result import TunedLayer

_TOKENS = (16, 32, 64, 128, 256, 512)
_MOST_ROWS = 512
_WORKING_SET = 16 << 20
_MOST_COPIES = 32


@dataclass(frozen=True)
class BlockVerdict:
    """A float block, the block with swapped layers, and the block in one call.

    Attributes:
        faster: one call is the fastest by the margin, for every number of sequences and tokens that was asked for.
        verdict: float against one call, by rows (sequences * tokens).
        reason: the times that speak most against one call, in words.
    """

    faster: bool
    verdict: Verdict
    reason: str


def shape_bucket(batch: int, tokens: int) -> tuple[int, int]:
    """The sequences and tokens that are measured for a batch: powers of two, at most 512 rows."""
    length = next((length for length in _TOKENS if tokens <= length), _TOKENS[-1])
    most = max(1, _MOST_ROWS // length)
    return min(1 << (batch - 1).bit_length(), most), length


class BlockTuner(Tuner):
    """Judges encoder blocks. Arguments and cache are those of Tuner."""

    def judge_block(self, block: Block, dtype: torch.dtype = torch.float32) -> BlockVerdict:
        """Float, swapped layers and one call, for a block whose layers' choices are known.

        Raises:
            ValueError: the block can't be packed.
        """
        shapes = sorted({shape_bucket(*shape) for shape in block.shapes or USUAL_SHAPES})
        name = describe_block(block, dtype)
        if any(self._cached(name, shape) is None for shape in shapes):
            with torch_threads(self.threads), torch.inference_mode():
                self._measure_block(block, name, dtype, shapes)
            self._cache.save()
        linear: dict[int, Times] = {}
        floats: dict[int, Times] = {}
        for shape in shapes:
            known = self._cached(name, shape)
            assert known is not None
            rows = shape[0] * shape[1]
            linear[rows], (float_us, own_us) = known
            floats[rows] = (
                float_us * linear[rows][1] / own_us,
                linear[rows][1],
            )  # on the scale of the first measurement
        gains = {rows: min(linear[rows][0] / linear[rows][1], floats[rows][0] / floats[rows][1]) for rows in linear}
        worst = min(gains, key=lambda rows: gains[rows])
        faster = gains[worst] >= 1 + MARGIN
        times = (floats[worst][0], linear[worst][0], linear[worst][1])
        before, middle, after = map(text.microseconds, times)
        facts = f"float {before} us, with swapped layers {middle} us, in one call {after} us at {worst} tokens"
        reason = f"{facts}: {'one call' if faster else 'swapped layers'}"
        before_us = {rows: pair[0] for rows, pair in floats.items()}
        verdict = Verdict(faster, before_us, {rows: pair[1] for rows, pair in floats.items()}, MARGIN, reason)
        return BlockVerdict(faster, verdict, reason)

    def _cached(self, name: str, shape: tuple[int, int]) -> tuple[Times, Times] | None:
        batch, tokens = shape
        linear = self._cache.get(f"{name}, {tokens} tokens, against its layers", batch)
        floats = self._cache.get(f"{name}, {tokens} tokens, against float", batch)
        return None if linear is None or floats is None else (linear, floats)

    def _measure_block(self, block: Block, name: str, dtype: torch.dtype, shapes: Sequence[tuple[int, int]]) -> None:
        floats = _bare(block.module).to(dtype)
        size = sum(parameter.numel() * parameter.element_size() for parameter in floats.parameters())
        count = max(1, min(_MOST_COPIES, -(-_WORKING_SET // max(size, 1))))
        layers = {path: _converted(block, path, choice) for path, choice in block.swapped.items()}
        swapped = _with_layers(_bare(block.module).to(dtype), layers)
        fused = EncoderBlock.from_layers(block.module, layers)
        sides = [[_call(one) for one in _copies(side, count)] for side in (floats, swapped, fused)]
        for batch, tokens in shapes:
            if self._progress is not None:
                self._progress(f"{name} at {batch} x {tokens} tokens")
            width = fused.config()["hidden"]
            x = torch.randn((batch, tokens, width), generator=torch.Generator().manual_seed(0)).to(dtype)
            for other, against in ((sides[1], "its layers"), (sides[0], "float")):
                times, calm = race(other, sides[2], x)
                self._cache.put(f"{name}, {tokens} tokens, against {against}", batch, times, remember=calm)
            self.measured += 1


def describe_block(block: Block, dtype: torch.dtype) -> str:
    """Extents and kinds of a block in words, the key of its measurements."""
    anatomy = block.found.anatomy
    up: Any = block.module.get_submodule(anatomy.up)
    kinds = [_kind(choice) for choice in block.swapped.values()]
    order = "pre-norm" if anatomy.norm_first else "post-norm"
    shape = f"{up.in_features} x {up.out_features}, {anatomy.heads} heads, {anatomy.activation}, {order}"
    which = kinds[0] if len(set(kinds)) == 1 else "/".join(kinds)
    return f"{block.found.family.name} block {shape}, {which} {str(dtype).removeprefix('torch.')}"


def _kind(choice: Choice) -> str:
    if choice.kind == "lowrank_int8":
        return f"rank {choice.candidate.module.rank}"
    return "int8" if choice.kind == "int8" else f"{choice.kind} {choice.pattern} {choice.sparsity:.3g}"


def _bare(module: nn.Module) -> nn.Module:
    """A copy in eval mode without hooks."""
    made = copy.deepcopy(module).eval()
    for part in made.modules():
        for key in HOOKS:
            part.__dict__[key].clear()
    return made


def _converted(block: Block, path: str, choice: Choice) -> nn.Module:
    layer = block.module.get_submodule(path)
    if choice.kind == "sparse_int8":
        return SparseInt8Linear.from_float(layer, pattern=choice.pattern)
    if choice.kind == "lowrank_int8":
        return LowRankInt8Linear.from_float(layer)
    return Int8Linear.from_float(layer)


def _with_layers(module: nn.Module, layers: dict[str, nn.Module]) -> nn.Module:
    for path, layer in layers.items():
        owner, _, key = path.rpartition(".")
        setattr(module.get_submodule(owner), key, layer)
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0  # torch's fused path would pass the layers by
    return module


def _copies(module: nn.Module, count: int) -> list[nn.Module]:
    return [module, *(copy.deepcopy(module) for _ in range(count - 1))]


def _call(module: nn.Module) -> Any:
    """The module as a function of x alone."""
    names = argument_names(getattr(module, "float_class", type(module)))
    needed = {"attention_mask": None} if "attention_mask" in names else {}

    def call(x: Tensor) -> Any:
        return module(x, **needed)

    return call


def tune_blocks(
    model: nn.Module,
    candidates: Sequence[Candidate],
    layers: Sequence[TunedLayer],
    example_inputs: Any,
    threads: int,
    cache: bool,
    progress: bool,
) -> tuple[tuple[TunedLayer, ...], int]:
    """What tersor.tune says about encoder blocks, and how many measurements were made.

    `candidates` and `layers`: the linear layers and what was found out about them, in one order.
    """
    choices = []
    for candidate, layer in zip(candidates, layers, strict=True):
        swapped = layer.verdict is not None and layer.verdict.faster
        choices.append(Choice(candidate, candidate.refusal or (None if swapped else layer.reason)))
    blocks = find_blocks(model, choices)
    if example_inputs is not None and blocks.blocks:
        with watching(blocks.blocks):
            observe.run(model, example_inputs, "example_inputs")
    close_unfit(blocks)
    tuner, found = BlockTuner(threads=threads, cache=cache), []
    for block in track(blocks.blocks, "measuring blocks", shown=progress and bool(blocks.blocks)):
        name = describe_block(block, next(block.module.parameters()).dtype)
        shapes = tuple(sorted({batch * tokens for batch, tokens in block.shapes}))
        if block.reason is not None:
            found.append(TunedLayer(block.names, name, shapes, None, f"one call was not tried: {block.reason}"))
            continue
        judged = tuner.judge_block(block, next(block.module.parameters()).dtype)
        found.append(TunedLayer(block.names, name, shapes, judged.verdict, judged.reason))
    return tuple(found), tuner.measured

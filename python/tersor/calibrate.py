"""Looking at what a model's layers are given, to choose the rows they are judged for, their ranges and smoothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from tersor import modules, observe
from tersor.errors import RecipeError
from tersor.nn.float_linear import weight_matrix
from tersor.progress import track
from tersor.quantize import input_scale, linear_error
from tersor.quantize.batches import limited
from tersor.selection import Choice, open_choices
from tersor.steps import Quantize

SMOOTHING_BATCHES = 64
"""Calibration batches that are looked at where they serve smoothing alone; static ranges look at all."""


def look_at_inputs(
    model: nn.Module,
    choices: Sequence[Choice],
    step: Quantize,
    inputs: Sequence[Any],
    calibration: Iterable[Any] | None,
    progress: bool,
) -> str | None:
    """Run the model and note on the open choices what their layers are given.

    Choices whose layer is never called, or gets a dtype that is not supported, are closed.

    Args:
        inputs: example inputs, empty where there are none; each is run once.
        calibration: batches; ranges and smoothing come from them where they are given, smoothing else from `inputs`.

    Returns:
        What smoothing can be based on, in words; None where there is nothing, or no smoothing is wanted.

    Raises:
        RecipeError: static ranges without calibration data.
        SwapError: the model failed on its inputs, or the calibration data is not usable.
    """
    static, smooth = step.activations == "static", step.smooth > 0
    seen: dict[int, observe.Seen] = {}
    if inputs:
        layers = [choice.candidate.module for choice in open_choices(choices)]
        seen = observe.observe_rows(model, layers, *inputs, values=smooth and calibration is None)
        _note_rows(choices, seen)
    if static and calibration is None:
        raise RecipeError(
            'activations = "static" needs calibration data: pass calibration=batches, or use activations = "dynamic"'
        )
    if calibration is not None and (static or smooth):
        named = {choice.candidate.name: choice.candidate.module for choice in open_choices(choices)}
        batches = limited(calibration, step.samples)
        batches = batches if static else islice(batches, SMOOTHING_BATCHES)
        seen = observe.observe_ranges(model, named, track(batches, "calibrating", shown=progress))
    for choice in open_choices(choices):
        choice.seen = seen.get(id(choice.candidate.module))
        if static and choice.seen is None:
            choice.reason = "never called on the calibration data"
    if not smooth or not (inputs or calibration is not None):
        return None
    return "the example inputs" if calibration is None else "the calibration data"


def fit(choice: Choice, step: Quantize, weight: Tensor | None = None) -> None:
    """Give a choice its static range and, where that reduces the layer's error, the smoothing of `step`.

    `weight` [..., in_features], where it is given, stands for that of the layer and of others with the same input.

    The error is that of the layer's output on a sample of rows that it was given. Smoothing makes it larger for some
    layers, such as those behind a GELU, whose few large inputs are rare.

    Raises:
        ValueError: the weight holds NaN or infinity.
    """
    seen = choice.seen
    if seen is None or seen.channels is None or seen.sample is None:
        return
    weight, static = weight_matrix(choice.candidate.module) if weight is None else weight, step.activations == "static"
    candidates: list[Tensor | None] = [None]
    if step.smooth > 0 and seen.channels.is_finite:
        low, high = torch.aminmax(weight, dim=0)  # [in_features] each
        candidates.append(input_scale(torch.maximum(high, -low), seen.channels.peak(), step.smooth))
    ranges = [seen.channels.x_range(candidate) if static else (0.0, 0) for candidate in candidates]
    best = 0
    if len(candidates) > 1:
        plain, smoothed = (
            linear_error(weight, seen.sample.rows, candidate, *x_range)
            for candidate, x_range in zip(candidates, ranges, strict=True)
        )
        best = int(smoothed < plain)
    choice.input_scale, (choice.x_scale, choice.x_zero_point) = candidates[best], ranges[best]


def smoothing_note(step: Quantize, choices: Iterable[Choice], source: str | None) -> str | None:
    """A sentence for the report about the swapped layers; None where there are none, or no smoothing was asked for."""
    if step.smooth == 0:
        return None
    if source is None:
        return "no smoothing, for want of inputs; with example_inputs or calibration, errors are smaller"
    if not (swapped := open_choices(choices)):
        return None
    smoothed = sum(choice.input_scale is not None for choice in swapped)
    return f"smoothing {step.smooth:g}: {smoothed} of {len(swapped)} layers, those whose error on {source} it reduces"


def _note_rows(choices: Iterable[Choice], seen: dict[int, observe.Seen]) -> None:
    for choice in open_choices(choices):
        entry = seen.get(id(choice.candidate.module))
        if entry is None or not entry.rows:
            choice.reason = "never called on example_inputs"
        else:
            choice.rows, choice.dtype = tuple(sorted(entry.rows)), entry.dtype
            if entry.dtype not in modules.DTYPES:
                choice.reason = f"its input is {entry.dtype}; supported: float32, bfloat16, float16"

"""Diagnosis: the ratios are what they say, the worst comes first, and the advice helps where it is followed."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor import Recipe, SwapError, steps
from tersor.nn import Int8Linear
from tersor.quantize.diagnosis import LayerDiagnosis, diagnose


def model() -> nn.Sequential:
    torch.manual_seed(6)
    return nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))


def run(inputs: Tensor, made: nn.Sequential, **settings: Any) -> tuple[nn.Sequential, list[LayerDiagnosis]]:
    recipe = Recipe([steps.Quantize(smooth=0, **settings)])
    seen = [inputs] if "activations" in settings else None
    quantized = tersor.compress(made, recipe, inputs, seen, force=True, progress=False).model
    return quantized, diagnose(made, quantized, [inputs], progress=False)


def test_ratios_are_those_of_the_layers() -> None:
    x, made = torch.randn(40, 128), model()
    quantized, found = run(x, made)
    assert sorted(one.name for one in found) == ["0", "2", "4"]
    assert [one.snr_db for one in found] == sorted(one.snr_db for one in found)
    with torch.no_grad():
        given = made[:2](x)
        y, expected = quantized[2](given), made[2](given)
        rounded = nn.functional.linear(given, quantized[2].to_float().weight, made[2].bias).detach()
    one = next(one for one in found if one.name == "2")
    without_bias = expected - made[2].bias.detach()
    assert one.snr_db == pytest.approx(20 * math.log10(expected.norm() / (y - expected).norm()), abs=0.01)
    assert one.weights_db == pytest.approx(20 * math.log10(without_bias.norm() / (rounded - expected).norm()), abs=0.05)
    inputs_noise = (y - rounded).norm()
    assert one.inputs_db == pytest.approx(20 * math.log10(without_bias.norm() / inputs_noise), abs=0.05)


def test_a_clipped_outlier_is_found_and_the_advice_is_true() -> None:
    x, made = torch.randn(400, 128), model()
    x[7, 3] = 3000.0
    found = {one.name: one for one in run(x, made, activations="static")[1]}
    first = found["0"]
    assert first.inputs_db < first.weights_db
    match = re.match(r'observer = "(\w+)" brings ([\d.]+) dB instead of ([\d.-]+)', first.suggestion)
    other = re.match(r'activations = "dynamic" brings', first.suggestion)
    assert match or other
    better = {one.name: one for one in run(x, made)[1]}["0"]
    assert better.snr_db > first.snr_db


def test_weights_that_are_uneven_within_rows_ask_for_groups() -> None:
    made = model()
    with torch.no_grad():
        for row in range(64):  # in each row other columns, so that no input scale evens them out
            made[0].weight[row, row * 2] = 0.8
    x = torch.randn(200, 128)
    found = {one.name: one for one in run(x, made, weights="int4")[1]}
    assert found["0"].suggestion.startswith("group_size = ")


def test_channels_that_weights_make_up_for_ask_for_smoothing_and_the_advice_is_true() -> None:
    made = model()
    with torch.no_grad():
        made[0].weight[:, :4] *= 3000
    x = torch.randn(200, 128)
    x[:, :4] /= 3000
    found = {one.name: one for one in run(x, made)[1]}
    assert found["0"].weights_db < found["0"].inputs_db
    match = re.match(r'corrections = \["smoothing"\] brings ([\d.]+) dB instead of', found["0"].suggestion)
    assert match
    better = steps.Quantize(smooth=0, corrections=["smoothing"])
    followed = tersor.compress(made, Recipe([better]), x, [x], force=True, progress=False).model
    first = next(one for one in diagnose(made, followed, [x], progress=False) if one.name == "0")
    assert first.snr_db == pytest.approx(float(match[1]), abs=1)
    assert found["4"].suggestion.startswith("No other range, smoothing or group size")


def test_models_that_have_nothing_in_common_are_refused() -> None:
    made = model()
    with pytest.raises(SwapError, match="no linear layer"):
        diagnose(made, copy.deepcopy(made), [torch.randn(2, 128)], progress=False)
    quantized = copy.deepcopy(made)
    quantized[2] = Int8Linear.from_float(made[2])
    with pytest.raises(SwapError, match="there was no batch"):
        diagnose(made, quantized, [], progress=False)

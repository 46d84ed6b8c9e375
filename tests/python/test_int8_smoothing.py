"""Smoothed layers: what they refuse, what smoothing is good for, and the way back to float."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tersor import restore, swap
from tersor.nn import Int8Linear
from tersor.quantize import input_scale


def with_outliers(k: int = 64, n: int = 48) -> tuple[nn.Linear, Tensor]:
    """A layer, and an input of which every 13th channel is 40 times as large as the others."""
    torch.manual_seed(0)
    x = torch.randn(100, k)
    x[:, ::13] *= 40
    return nn.Linear(k, n), x


def error(layer: nn.Module, module: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((layer(x) - module(x)).norm() / module(x).norm())


def test_smoothing_reduces_the_error_where_channels_differ() -> None:
    module, x = with_outliers()
    c = input_scale(module.weight.detach().abs().amax(0), x.abs().amax(0))
    plain, smoothed = Int8Linear.from_float(module), Int8Linear.from_float(module, input_scale=c)
    assert error(smoothed, module, x) < 0.5 * error(plain, module, x)


def test_an_input_scale_of_ones_changes_no_bit() -> None:
    module, x = with_outliers()
    layer = Int8Linear.from_float(module, input_scale=torch.ones(64))
    assert torch.equal(layer(x), Int8Linear.from_float(module)(x))
    assert torch.equal(layer.weight + 0, Int8Linear.from_float(module).weight + 0)


def test_a_scale_by_powers_of_two_is_exact() -> None:
    """x c and W / c are exact then, so a layer smoothed by c equals the plain one of W / c on x c, bit for bit."""
    module, x = with_outliers()
    c = torch.exp2(torch.randint(-5, 1, (64,)).float())
    layer = Int8Linear.from_float(module, input_scale=c)
    with torch.no_grad():
        module.weight.div_(c)
    assert torch.equal(layer(x), Int8Linear.from_float(module)(x * c))


def test_restore_knows_the_float_layer_of_a_smoothed_one() -> None:
    module, _ = with_outliers()
    model = nn.Sequential(module)
    swap(model, force=True)
    kept = model[0].__dict__["_tersor_float"]
    model[0] = Int8Linear.from_float(module, input_scale=torch.rand(64) + 0.1)
    model[0].__dict__["_tersor_float"] = kept
    restore(model)
    assert model[0] is module
    model[0] = Int8Linear.from_float(module, input_scale=torch.rand(64) + 0.1)
    expected = model[0].weight.clone()
    restore(model)
    assert type(model[0]) is nn.Linear
    assert torch.equal(model[0].weight, expected)


def test_a_weight_too_large_to_be_divided() -> None:
    module = nn.Linear(8, 4)
    with torch.no_grad():
        module.weight[2, 5] = 1e38
    with pytest.raises(ValueError, match="the weight divided by input_scale holds NaN or infinity, first in row 2"):
        Int8Linear.from_float(module, input_scale=torch.full((8,), 1e-3))


@pytest.mark.parametrize("bad", [0.0, -0.0, -1.0, float("nan"), float("inf"), -float("inf")])
def test_bad_values_of_input_scale(bad: float) -> None:
    module, values = nn.Linear(8, 4), torch.ones(8)
    layer = Int8Linear.from_float(module, input_scale=values)
    values[3] = bad
    with pytest.raises(ValueError, match="input_scale: expected values that are finite and greater than 0"):
        Int8Linear.from_float(module, input_scale=values)
    for load in (layer.fill, layer.load_state_dict):
        with pytest.raises((ValueError, RuntimeError), match="input scale of column 3 is"):
            load({**layer.canonical_tensors(), "input_scale": values})
    assert torch.equal(layer.canonical_tensors()["input_scale"], torch.ones(8))


def test_input_scales_of_another_shape_or_dtype() -> None:
    module = nn.Linear(8, 4)
    layer = Int8Linear.from_float(module, input_scale=torch.ones(16)[::2])
    for bad in (torch.ones(7), torch.ones(1, 8), torch.ones(8).double(), torch.ones(8, device="meta")):
        with pytest.raises(ValueError, match=r"input_scale: expected torch.float32 \[8\]"):
            Int8Linear.from_float(module, input_scale=bad)
        with pytest.raises(ValueError, match="input_scale: expected"):
            layer.fill({**layer.canonical_tensors(), "input_scale": bad})
        with pytest.raises(RuntimeError, match="input_scale: expected"):
            layer.load_state_dict({**layer.canonical_tensors(), "input_scale": bad})
    tensors = layer.canonical_tensors()
    del tensors["input_scale"]
    with pytest.raises(ValueError, match=r"expected tensors .*'input_scale'"):
        layer.fill(tensors)

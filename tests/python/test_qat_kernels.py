"""What linear layers were trained as is what the kernels compute: the same integers, outputs within a derived bound."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tersor.nn import CodebookLinear, Int8Linear
from tersor.quantize.codebooks import CODEBOOKS
from tersor.quantize.qat import QAT, QATLinear, Scheme

UNIT = 2.0**-24


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_an_int8_layer_computes_what_was_trained(mode: str) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(70, 33), nn.ReLU(), nn.Linear(33, 9, bias=False))
    qat = QAT(model, Scheme(8, activations=mode), steps=20)
    data = [torch.randn(16, 70) * (1 + index % 3) for index in range(20)]
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for x in data:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        qat.step()
    model.eval()
    trained = copy.deepcopy(model)
    codes = [layer.codes() for layer in qat.layers.values()]
    result = qat.finish()
    assert result.accelerated == ("0", "2")
    assert result.floats == {}
    x = torch.randn(11, 70)
    for index in (0, 2):
        layer, fake = model[index], trained[index]
        assert isinstance(layer, Int8Linear)
        assert isinstance(fake, QATLinear)
        tensors = layer.canonical_tensors()
        entries = codes[index // 2].table[codes[index // 2].codes.long()]
        assert torch.equal(tensors["weight_q"], entries)
        with torch.no_grad():
            y, expected = layer(x), fake(x)
            assert fake.fake_input is not None
            terms = fake.fake_input(x).abs() @ fake.fake_weight(fake.weight).abs().t()
            # Products of rounded factors, a sum of k terms in any order, the scaling of the kernel, and the bias.
            bound = UNIT * ((x.shape[1] + 6) * terms + 4 * (expected.abs() + y.abs()))
            bound += 0 if fake.bias is None else 2 * UNIT * fake.bias.abs()
        assert bool(((y - expected).abs() <= bound).all())
        x = torch.relu(expected)


@pytest.mark.parametrize("group_size", [None, 32])
def test_a_layer_of_codes_computes_what_was_trained(group_size: int | None) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(70, 33)).eval()
    x = torch.randn(11, 70)
    qat = QAT(model, Scheme(4, "kmeans", group_size, "static"), calibration=[x])
    qat.freeze_observers()
    with torch.no_grad():
        fake = copy.deepcopy(model)[0]
        assert qat.finish().accelerated == ("0",)
        assert isinstance(model[0], CodebookLinear)
        weight = fake.fake_weight(fake.weight)
        assert torch.equal(model[0].weight, weight)
        y, expected = model(x), fake(x)
        terms = fake.fake_input(x).abs() @ weight.abs().t()
        # As for int8, and every group is scaled and added with a rounding of its own.
        groups = 1 if group_size is None else 3
        bound = UNIT * ((70 + 6 + 2 * groups) * terms + 4 * (expected.abs() + y.abs()) + 2 * fake.bias.abs())
    assert bool(((y - expected).abs() <= bound).all())


def test_layers_that_no_kernel_takes_become_float_with_a_reason() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    qat = QAT(model, Scheme(4, activations="dynamic", activation_bits=4))
    x = torch.randn(3, 8)
    rounded = qat.layers["0"].fake_weight(qat.layers["0"].weight)
    result = qat.finish()
    assert result.accelerated == ()
    assert result.floats == dict.fromkeys(("0", "2"), "the kernels take inputs of 8 bits, not 4")
    assert type(model[0]) is nn.Linear
    assert torch.equal(model[0].weight, rounded)
    assert model(x).shape == (3, 4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [None, 32])
@pytest.mark.parametrize("book", sorted(CODEBOOKS))
def test_dynamic_layers_of_every_code_book_compute_what_was_trained(
    bits: int, group_size: int | None, book: str
) -> None:
    bits = min(bits, CODEBOOKS[book].most_bits)
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(70, 33)).eval()
    x = torch.randn(11, 70, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, 11)[:, None]
    qat = QAT(model, Scheme(bits, book, group_size, "dynamic"))
    with torch.no_grad():
        fake = copy.deepcopy(model)[0]
        assert qat.finish().accelerated == ("0",)
        y, expected = model(x), fake(x)
        terms = fake.fake_input(x).abs() @ fake.fake_weight(fake.weight).abs().t()
        groups = 1 if group_size is None else 3
        bound = UNIT * ((70 + 6 + 2 * groups) * terms + 4 * (expected.abs() + y.abs()) + 2 * fake.bias.abs())
    assert bool(((y - expected).abs() <= bound).all())

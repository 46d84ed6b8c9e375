"""Quantisation-aware training: gradients, schedules, folding, and that the kernels compute what was trained."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tersor
from tersor import SwapError
from tersor.nn import Int8Conv2d
from tersor.quantize.codebooks import CODEBOOKS, decode, make_codebook
from tersor.quantize.qat import QAT, FakeInput, FakeWeight, QATConv2d, Scheme
from tersor.quantize.qat.norms import conv_norm_pairs
from tersor.training import train

UNIT = 2.0**-24


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fake_weight(bits: int = 4, book: str = "linear", group_size: int | None = None) -> tuple[FakeWeight, nn.Parameter]:
    weight = nn.Parameter(torch.randn(6, 40, generator=generator()))
    return FakeWeight(weight.detach(), make_codebook(book), bits, group_size), weight


@pytest.mark.parametrize("book", sorted(CODEBOOKS))
@pytest.mark.parametrize("group_size", [None, 16])
def test_a_fake_weight_is_what_its_codes_stand_for(book: str, group_size: int | None) -> None:
    fake, weight = fake_weight(4, book, group_size)
    with torch.no_grad():
        fake.log_scale += 0.1 * torch.randn(fake.log_scale.shape, generator=generator(1))
        weight *= 1.7  # some are outside the range now
    codes = fake.codes(weight)
    codes.check()
    assert torch.equal(decode(codes), fake(weight))


def test_weight_gradients_go_straight_through_inside_the_range() -> None:
    fake, weight = fake_weight(3)
    with torch.no_grad():
        fake.log_scale -= 0.5
    upstream = torch.randn(6, 40, generator=generator(2))
    (fake(weight) * upstream).sum().backward()
    units = weight.detach() / fake.scale.detach()
    inside = (units >= -4) & (units <= 3)
    assert 0 < int(inside.sum()) < inside.numel()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, torch.where(inside, upstream, torch.zeros(())))
    # LSQ: round(v) - v inside, the end outside, by 1 / sqrt(weights per step * largest entry); times s for log s.
    slope = torch.where(inside, units.clamp(-4, 3).round() - units, units.clamp(-4, 3).round())
    expected = (slope * upstream).sum(1, keepdim=True) * fake.scale.detach() / (40 * 4) ** 0.5
    assert fake.log_scale.grad is not None
    assert torch.allclose(fake.log_scale.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("bits", [4, 8])
def test_fake_inputs_are_integers_within_the_range(mode: str, bits: int) -> None:
    fake = FakeInput(mode, bits, "minmax")
    x = torch.randn(5, 30, generator=generator(), requires_grad=True)
    first = fake(x)
    fake.freeze()
    y = fake(x)
    assert torch.equal(first, y if mode == "dynamic" else x)  # there was no range yet
    low, high = (x.amin(-1, True), x.amax(-1, True)) if mode == "dynamic" else (x.min(), x.max())
    steps = (y / ((high - low) / (2**bits - 1))).detach()
    assert torch.allclose(steps, steps.round(), atol=2e-3)
    assert bool(((y - x).abs() <= (high - low) / (2**bits - 1) * 1.01).all())
    y.sum().backward()
    assert x.grad is not None
    assert float(x.grad.mean()) > 0.9  # straight through, but for what lies outside by rounding


def test_static_ranges_follow_the_observer_and_then_stay() -> None:
    fake = FakeInput("static", 8, "minmax")
    fake.train()
    fake(torch.ones(3) * 2)
    fake(torch.ones(3) * 4)
    assert not bool(fake.ranged)
    fake.follow([fake.fresh])
    assert float(fake.scale.detach()) == pytest.approx(4 / 255)
    fake.eval()
    with torch.no_grad():
        fake(torch.ones(3) * 9)
    assert float(fake.scale.detach()) == pytest.approx(4 / 255)  # an evaluation does not observe
    fake.train()
    fake.freeze()
    fake(torch.ones(3) * 100)
    assert float(fake.scale.detach()) == pytest.approx(4 / 255)


class SpentError(Exception):
    """The training was interrupted."""


@pytest.mark.parametrize("observer", ["mse", "moving_average"])
@pytest.mark.parametrize("stop", [2, 4, 5, 9])  # while ranges are observed, at their freezing, after it
def test_an_interrupted_training_ends_as_an_uninterrupted_one(observer: str, stop: int, tmp_path: Path) -> None:
    batches = [torch.randn(6, 3, 8, 8, generator=generator(seed)) * (1 + seed) for seed in range(5)]

    def trained(state: Path | None, stop: int | None = None) -> ConvNet:
        model, calls = trained_conv_net(), 0

        def loss(model: nn.Module, x: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise SpentError
            return model(x).square().mean()  # type: ignore[no-any-return]

        scheme = Scheme(4, activations="static", observer=observer)
        qat = QAT(model, scheme, steps=10, observe=0.4, norms=0.8, calibration=[batches[0] * 20])
        train(model, batches, loss, epochs=2, state=state, save_seconds=0, companions=[qat], progress=False)
        return model

    with pytest.raises(SpentError):
        trained(tmp_path / "state", stop)
    expected = trained(None).state_dict()
    for name, tensor in trained(tmp_path / "state").state_dict().items():
        assert torch.equal(tensor, expected[name]), name


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, groups=2, stride=2), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = torch.relu(self.norm2(self.conv2(y)))
        return self.head(y.mean((2, 3)))  # type: ignore[no-any-return]


def trained_conv_net() -> ConvNet:
    torch.manual_seed(0)
    model = ConvNet()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 3, 8, 8) * 2 + 1)
        model.norm1.weight.copy_(torch.tensor([1.0, -0.5, 2.0, 0.0, 1.0, 0.3]))
        model.norm2.bias.copy_(torch.randn(6))
    return model


def test_pairs_of_convolution_and_batch_norm_are_found() -> None:
    assert conv_norm_pairs(ConvNet()) == {"conv1": "norm1", "conv2": "norm2"}

    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if x.sum() > 0 else x  # type: ignore[no-any-return]

    assert conv_norm_pairs(Untraceable()) == {"body.0": "body.1"}
    conv = nn.Conv2d(1, 1, 1)
    assert conv_norm_pairs(nn.Sequential(conv, nn.BatchNorm2d(1), conv)) == {}


def test_folding_computes_what_the_batch_norm_did() -> None:
    model = trained_conv_net()
    plain = copy.deepcopy(model).eval()
    QAT(model, Scheme(8, activations=None))
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = plain(x)
        # 8-bit weights, two layers of convolutions: 1/127 of the largest weight is lost in each at most.
        assert float((model.eval()(x) - expected).norm() / expected.norm()) < 0.05
    assert isinstance(model.norm1, nn.Identity)
    assert isinstance(model.conv1, QATConv2d)


def test_training_updates_the_statistics_until_they_are_frozen() -> None:
    model = trained_conv_net().train()
    qat = QAT(model, Scheme(4, activations="static"), steps=10, observe=0.2, norms=0.5)
    norm = qat.layers["conv1"].norm
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    means = []
    for _ in range(10):
        optimizer.zero_grad()
        functional.cross_entropy(model(torch.randn(8, 3, 8, 8) + 2), torch.randint(0, 5, (8,))).backward()
        optimizer.step()
        qat.step()
        means.append(norm.running_mean.clone())
    assert not torch.equal(means[0], means[4])
    assert torch.equal(means[4], means[9])
    assert norm.weight.grad is not None
    assert bool(torch.isfinite(norm.weight.grad).all())


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_a_finished_conv_net_computes_what_was_trained_and_goes_through_a_file(mode: str, tmp_path: Path) -> None:
    model = trained_conv_net().eval()
    x = torch.randn(4, 3, 8, 8)
    qat = QAT(model, Scheme(8, activations=mode), calibration=[x, x * 1.1])
    qat.freeze_observers()
    with torch.no_grad():
        trained = copy.deepcopy(model)
        result = qat.finish()
        assert result.accelerated == ("conv1", "conv2", "head")
        assert result.floats == {}
        assert type(model.norm1) is nn.Identity
        for name, given in (("conv1", x), ("conv2", torch.relu(trained.conv1(x)))):
            layer, fake = getattr(model, name), getattr(trained, name)
            assert isinstance(layer, Int8Conv2d)
            codes = fake.codes()
            assert torch.equal(layer.canonical_tensors()["weight_q"].flatten(1), codes.table[codes.codes.long()])
            y, expected = layer(given), fake(given)
            weight = fake.to_float().weight
            settings = {"stride": fake.stride, "padding": fake.padding, "groups": fake.groups}
            terms = functional.conv2d(fake.fake_input(given).abs(), weight.abs(), **settings)
            # As for linear layers; the folded bias is computed once and used by both.
            bound = UNIT * ((weight[0].numel() + 6) * terms + 4 * (expected.abs() + y.abs()))
            bound += 2 * UNIT * fake.to_float().bias.abs()[:, None, None]
            assert bool(((y - expected).abs() <= bound).all())
        tersor.save(model, tmp_path / "net.tersor")
        again = tersor.load(tmp_path / "net.tersor", model=ConvNet())
        assert torch.equal(again.eval()(x), model(x))


def test_convolutions_of_few_bits_become_float_and_folded(tmp_path: Path) -> None:
    model = trained_conv_net().eval()
    x = torch.randn(4, 3, 8, 8)
    qat = QAT(model, Scheme(4, activations="static"), include=["conv*"], calibration=[x])
    result = qat.finish()
    assert result.accelerated == ()
    assert set(result.floats.values()) == {"convolutions take weights of 8 bits with one scale per channel"}
    assert type(model.conv1) is nn.Conv2d
    assert model.conv1.bias is not None
    assert all(len(channel.unique()) <= 16 for channel in model.conv1.weight)
    tersor.save(model, tmp_path / "net.tersor")
    again = tersor.load(tmp_path / "net.tersor", model=ConvNet())
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model(x))


def test_training_recovers_what_few_bits_lose() -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 16)
    y = torch.stack([x[:, 0] * x[:, 1] > 0, x[:, 2] + x[:, 3] > 0, x[:, 4] > 0.5], 1).float()
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))

    def train(count: int, qat: QAT | None = None) -> float:
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        loss = torch.zeros(())
        for _ in range(count):
            optimizer.zero_grad()
            loss = functional.binary_cross_entropy_with_logits(model(x), y)
            loss.backward()
            optimizer.step()
            if qat is not None:
                qat.step()
        return float(loss.detach())

    full = train(300)
    qat = QAT(model, Scheme(2, activations="static", activation_bits=4), steps=200)
    before = train(1, qat)
    after = train(199, qat)
    assert before > 2 * full
    assert after < before / 2


def test_wrong_settings_are_errors() -> None:
    with pytest.raises(SwapError, match="no linear or convolution layer"):
        QAT(nn.Sequential(nn.ReLU()))
    with pytest.raises(SwapError, match="itself a layer"):
        QAT(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown code book"):
        QAT(nn.Sequential(nn.Linear(2, 2)), Scheme(codebook="fp4"))
    with pytest.raises(ValueError, match="unknown observer"):
        QAT(nn.Sequential(nn.Linear(2, 2)), Scheme(activations="static", observer="max"))

"""What calibration makes of filters and channels of int8 graphs: moments, gptq, bias, channels made equally large."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import tersor
from tersor import Recipe, steps
from tersor.convnet import quantize_convnet
from tersor.convnet.convert import find_parts, look
from tersor.convnet.correct import WindowMoments, rounded
from tersor.convnet.measure import channel_peaks
from tersor.convnet.operations import Conv
from tersor.convnet.scaling import scale_channels
from tersor.convnet.trace import Watched
from tersor.nn import Int8Graph


def conv(out: int, channels: int, groups: int, kernel: tuple[int, int] = (3, 3), stride: int = 1) -> Conv:
    weight = torch.randn(out, channels // groups, *kernel)
    return Conv(weight, torch.randn(out), (stride, stride), (1, 0, 1, 2), (2, 1), groups)


def windows(made: Conv, x: Tensor) -> Tensor:
    """[groups, depth, count], by torch's own unfolding."""
    top, left, bottom, right = made.pads
    columns = F.unfold(F.pad(x, (left, right, top, bottom)), made.weight.shape[2:], made.dilation, 0, made.stride)
    return columns.transpose(0, 1).reshape(made.groups, -1, columns.shape[0] * columns.shape[2])


@pytest.mark.parametrize(("out", "channels", "groups"), [(5, 4, 1), (6, 3, 3), (4, 8, 2)])
def test_moments_are_those_of_the_windows(out: int, channels: int, groups: int) -> None:
    torch.manual_seed(0)
    made, pictures = conv(out, channels, groups, (3, 2), 2), torch.randn(3, channels, 9, 8)
    moments = WindowMoments(made, second=True)
    moments.add(made, pictures[:1])
    moments.add(made, pictures[1:])
    seen = windows(made, pictures)
    assert moments.count == seen.shape[2]
    torch.testing.assert_close(moments.mean, seen.mean(2))
    torch.testing.assert_close(moments.gram, seen @ seen.transpose(1, 2) / seen.shape[2])


@pytest.mark.parametrize(("out", "channels", "groups"), [(16, 8, 1), (12, 12, 12), (8, 8, 2)])
def test_gptq_and_bias_make_the_error_on_what_was_seen_smaller(out: int, channels: int, groups: int) -> None:
    torch.manual_seed(1)
    made = conv(out, channels, groups)
    x = F.avg_pool2d(torch.rand(4, channels, 14, 14), 3, 1) + 1  # neighbours are alike, as in pictures
    moments = WindowMoments(made, second=True)
    moments.add(made, x)
    padded = F.pad(x, (0, 2, 1, 1))

    def error(corrections: tuple[str, ...]) -> Tensor:
        q, scale, bias = rounded(made, moments, corrections)
        assert q.dtype == torch.int8
        assert int(q.abs().max()) <= 127
        weight = q.float() * scale.reshape(-1, 1, 1, 1)
        assert (weight - made.weight).abs().max() < 8 * scale.max()
        settings: Any = (made.stride, 0, made.dilation, groups)
        assert made.bias is not None
        given: Tensor = F.conv2d(padded, weight, bias, *settings)
        return given - F.conv2d(padded, made.weight, made.bias, *settings)

    plain, bias, gptq, both = (error(names) for names in ((), ("bias",), ("gptq",), ("bias", "gptq")))
    assert bias.mean((0, 2, 3)).abs().max() < 1e-4
    assert both.mean((0, 2, 3)).abs().max() < 1e-4
    for before, after in ((plain, bias), (plain, gptq), (bias, both)):
        energy = after.square().mean((0, 2, 3))
        assert (energy <= before.square().mean((0, 2, 3)) * 1.0001).all()
    assert gptq.square().mean() < 0.5 * plain.square().mean()


def test_inputs_that_are_always_zero_are_rounded_to_nearest() -> None:
    made = conv(4, 2, 1)
    moments = WindowMoments(made, second=True)
    moments.add(made, torch.zeros(1, 2, 8, 8))
    for one, other in zip(rounded(made, moments, ("gptq", "bias")), rounded(made, None, ()), strict=True):
        assert torch.equal(one, other)


class Uneven(nn.Module):
    """Bottlenecks with sums and relu6 whose channels differ by three orders of magnitude."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.narrow, self.wide = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 24, 1)
        self.back, self.last = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 5, 3)
        size = torch.logspace(-3, 0, 8)
        with torch.no_grad():
            for made in (self.narrow, self.back):
                made.weight *= size.reshape(-1, 1, 1, 1)
                made.get_parameter("bias").mul_(size)
            for made in (self.wide, self.last):
                made.weight /= size.reshape(1, -1, 1, 1)
            self.stem.weight *= torch.logspace(-2, 1, 16).reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(F.relu6(self.deep(F.relu6(self.stem(x)))))
        y: Tensor = self.last(self.back(F.relu(self.wide(x))) + x)
        return y


def uneven() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    return Uneven().eval(), torch.randn(4, 3, 12, 12)


def noise(model: nn.Module, x: Tensor, **settings: Any) -> float:
    work = copy.deepcopy(model)
    quantize_convnet(work, [x], force=True, **settings)
    with torch.no_grad():
        expected = model(x)
        return float((work(x) - expected).square().sum() / expected.square().sum())


def test_scaled_channels_compute_what_they_did() -> None:
    model, x = uneven()
    (part,), _ = find_parts(model)
    look(part, model, x, lambda name: True)
    (segment,) = part.segments
    with torch.no_grad():
        expected = model(x)
        known = {segment.source: x}

        def show(see: Any) -> None:
            Watched(part.traced, see).run(x)

        scales = scale_channels(segment, channel_peaks([segment], show), 0.5)
        assert len({id(s) for s in scales.values()}) == 2  # wide, and what is summed
        for unit in segment.units:
            made = unit.conv
            assert made is not None
            top, left, bottom, right = made.pads
            y = F.pad(known[unit.inputs[0]], (left, right, top, bottom))
            y = F.conv2d(y, made.weight, made.bias, made.stride, 0, made.dilation, made.groups)
            y = y + known[unit.inputs[1]] if len(unit.inputs) > 1 else y
            known[unit.value] = {"none": lambda t: t, "relu": F.relu, "relu6": F.relu6}[unit.activation](y)
        torch.testing.assert_close(known[segment.result], expected, rtol=1e-4, atol=1e-4)


def test_scaled_channels_lose_less() -> None:
    model, x = uneven()
    assert noise(model, x, smooth=0.5) < 0.1 * noise(model, x, smooth=0.0)


def test_a_recipe_reaches_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = uneven()
    seen: list[int] = []

    def spy(work: nn.Module, batches: Any, **settings: Any) -> Any:
        seen.append(sum(len(batch) for batch in batches))
        assert settings["corrections"] == ("bias", "gptq")
        assert settings["smooth"] == 0.25
        return quantize_convnet(work, batches, **settings)

    monkeypatch.setattr("tersor.convnet.quantize_convnet", spy)
    step = steps.Quantize(activations="static", corrections=("gptq", "awq"), smooth=0.25, samples=2)
    batches = [x[:1], x[1:2], x[2:]]
    result = tersor.compress(model, Recipe([step]), x, calibration=batches, force=True, progress=False)
    assert seen == [2]
    assert any(isinstance(module, Int8Graph) for module in result.model.modules())
    assert any("smooth 0.25, corrections bias, gptq; awq would need" in note for note in result.report.notes)


@pytest.mark.parametrize("wrong", [{"smooth": 2.0}, {"corrections": "bias"}, {"corrections": ("awq",)}])
def test_settings_that_do_not_exist_are_errors(wrong: dict[str, Any]) -> None:
    model, x = uneven()
    with pytest.raises(ValueError, match="corrections among bias, gptq"):
        quantize_convnet(model, [x], **wrong)

"""Every observer of the registry: its rules, streaming, granularities, and what each is for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tersor import SwapError
from tersor.quantize.calibration import calibrate
from tersor.quantize.observers import OBSERVERS, Observer, make_observer, quantization, register_observer

NAMES = sorted(OBSERVERS)


def inputs(shape: tuple[int, ...], count: int = 3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * (1 + index) for index in range(count)]


def observed(name: str, batches: list[Tensor], granularity: str = "tensor", group_size: int | None = None) -> Observer:
    observer = make_observer(name, granularity, group_size)  # type: ignore[arg-type]
    for batch in batches:
        observer.add(batch)
    return observer


def mean_error(x: Tensor, observer: Observer, bits: int) -> float:
    scale, zero = (t[0] for t in observer.quantization(bits))
    q = (x / scale).round().clamp(-zero, 2**bits - 1 - zero)
    return float((q * scale - x).square().mean())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("granularity", "group_size", "units"),
    [("tensor", None, 1), ("channel", None, 6), ("token", None, 5), ("group", 3, 2)],
)
def test_ranges_hold_zero_and_lie_within_what_was_seen(
    name: str, granularity: str, group_size: int | None, units: int
) -> None:
    batches = inputs((4, 5, 6))
    low, high = observed(name, batches, granularity, group_size).range()
    assert low.shape == high.shape == (units,)
    assert low.dtype == torch.float32
    everything = torch.cat(batches)
    least, most = observed("minmax", batches, granularity, group_size).range()
    assert bool((least <= low).all() and (low <= 0).all() and (high >= 0).all() and (high <= most).all())
    assert float(least.min()) == float(everything.min())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seen", [0, 2])
def test_an_observer_goes_on_from_its_state(name: str, seen: int) -> None:
    batches = inputs((4, 6), 4)
    first = observed(name, batches[:seen], "channel")
    again = make_observer(name, "channel")
    again.load_state_dict(first.state_dict())
    for batch in batches[seen:]:
        first.add(batch)  # what the other one does must not change the state that was taken
        again.add(batch)
    expected = observed(name, batches, "channel").range()
    assert all(torch.equal(one, other) for one, other in zip(again.range(), expected, strict=True))
    other = next(kind for kind in NAMES if kind != name)
    with pytest.raises(ValueError, match=f"expected the state of the observer '{other}', got that of '{name}'"):
        make_observer(other).load_state_dict(first.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_is_observed_as_if_it_were_alone(name: str) -> None:
    batches = inputs((4, 5, 6))
    channels = observed(name, batches, "channel")
    groups = observed(name, batches, "group", 2)
    tokens = observed(name, batches, "token")
    for index in range(5):
        alone = observed(name, [batch[..., index] for batch in batches])
        assert [float(t[index]) for t in channels.range()] == [float(t[0]) for t in alone.range()]
        alone = observed(name, [batch[:, index] for batch in batches])
        assert [float(t[index]) for t in tokens.range()] == [float(t[0]) for t in alone.range()]
    alone = observed(name, [batch[..., 2:4] for batch in batches])
    assert [float(t[1]) for t in groups.range()] == [float(t[0]) for t in alone.range()]


@pytest.mark.parametrize("name", NAMES)
def test_memory_does_not_grow_and_the_first_input_does_not_matter(name: str) -> None:
    observer = make_observer(name)
    observer.add(torch.full((3,), 1e-6))
    size = observer.state_bytes
    for batch in inputs((64, 32), 20):
        observer.add(batch)
    assert observer.state_bytes == size
    assert float(observer.range()[1]) > 1


@pytest.mark.parametrize("name", NAMES)
def test_tokens_may_become_more(name: str) -> None:
    observer = observed(name, [torch.ones(2, 3, 4), -torch.ones(2, 5, 4), torch.ones(2, 1, 4)], "token")
    low, high = observer.range()
    assert len(low) == 5
    assert float(high[4]) == 0
    assert float(low[4]) < 0


@pytest.mark.parametrize("name", NAMES)
def test_zeros_one_sided_and_extreme_inputs(name: str) -> None:
    scale, zero = observed(name, [torch.zeros(7)]).quantization()
    assert (float(scale), int(zero)) == (1.0, 0)
    assert float(observed(name, [torch.rand(100) + 1]).range()[0]) == 0
    assert float(observed(name, [-torch.rand(100)]).range()[1]) == 0
    for size in (1e-38, 1e38):
        scale, _ = observed(name, [torch.tensor([-size, size, 0.0])]).quantization()
        assert 0 < float(scale) < math.inf
    nothing = make_observer(name)
    nothing.add(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="nothing was observed"):
        nothing.range()


@pytest.mark.parametrize("name", NAMES)
def test_bad_inputs_are_refused(name: str) -> None:
    observer = observed(name, inputs((3, 4), 1), "channel")
    for bad in (torch.full((2, 4), math.nan), torch.full((2, 4), math.inf)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            observer.add(bad)
    with pytest.raises(ValueError, match="expected 4 ranges"):
        observer.add(torch.ones(2, 5))
    with pytest.raises(ValueError, match="group_size"):
        make_observer(name, "group")
    with pytest.raises(ValueError, match="granularity"):
        make_observer(name, "row")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="divide"):
        make_observer(name, "group", 4).add(torch.ones(2, 6))
    with pytest.raises(ValueError, match="tokens, channels"):
        make_observer(name, "token").add(torch.ones(6))


def test_definitions() -> None:
    batches = inputs((1000,), 4)
    everything = torch.cat(batches)
    low, high = observed("minmax", batches).range()
    assert (float(low), float(high)) == (float(everything.min()), float(everything.max()))
    low, high = observed("moving_average", batches).range()
    assert math.isclose(float(high), sum(float(batch.max()) for batch in batches) / 4, rel_tol=1e-5)
    low, high = observed("percentile", [torch.linspace(-1, 1, 200_001)]).range()
    assert 0.9998 - 1e-6 <= float(high) <= 0.9998 + 2 / 1024
    assert -0.9998 - 2 / 1024 <= float(low) <= -0.9998 + 1e-6


def test_a_moving_average_forgets() -> None:
    observer = observed("moving_average", [torch.ones(2)] + [torch.ones(2) * 2] * 60)
    assert math.isclose(float(observer.range()[1]), 2.0, rel_tol=0.01)


def test_histograms_count_the_same_in_any_order() -> None:
    batches = [torch.tensor([0.0, 0.3]), torch.tensor([5.0, -0.1]), torch.tensor([100.0, 1.7]), torch.zeros(3)]
    one, other = (observed("mse", part) for part in (batches, batches[::-1]))
    assert torch.equal(one.counts, other.counts)  # type: ignore[attr-defined]
    assert float(one.counts.sum()) == 9  # type: ignore[attr-defined]


def test_one_outlier_is_clipped_by_the_observers_that_weigh_it() -> None:
    x = torch.cat([torch.randn(100_000, generator=torch.Generator().manual_seed(1)), torch.tensor([60.0])])
    for name in ("percentile", "entropy", "mse"):
        assert float(observed(name, [x]).range(4)[1]) < 30
        assert mean_error(x, observed(name, [x]), 4) < mean_error(x, observed("minmax", [x]), 4)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_mse_is_no_worse_than_any_other(bits: int) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = [torch.randn(5000, generator=generator), torch.rand(5000, generator=generator) ** 6]
    for x in (*shapes, torch.randn(5000, generator=generator).relu() ** 3):
        best = mean_error(x, observed("mse", [x]), bits)
        others = [mean_error(x, observed(name, [x]), bits) for name in NAMES]
        # A bin is at most 1/512 of the peak wide, so the error is known to a quarter of its square or so.
        assert best <= min(others) * 1.02 + (float(x.abs().max()) / 512) ** 2 / 12


def test_quantization_maps_zero_exactly() -> None:
    low, high = -torch.rand(50), torch.rand(50)
    scale, zero = quantization(low, high, 8)
    assert bool(((zero >= 0) & (zero <= 255)).all())
    assert torch.allclose(scale, (high - low) / 255)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.used, self.unused = nn.Conv2d(1, 2, 3), nn.Linear(8, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(self.conv(x).flatten(1))  # type: ignore[no-any-return]


def test_calibrate_reports_what_was_not_reached_and_stops_at_the_cap() -> None:
    batches = [torch.randn(4, 1, 4, 4) for _ in range(5)]
    model = Branches()
    found = calibrate(model, batches, progress=False)
    assert sorted(found.observers) == ["conv", "used"]
    assert found.unreached == ("unused",)
    assert (found.batches, found.samples) == (5, 20)
    _, high = found.observers["conv"].range()
    assert float(high) == max(float(batch.max()) for batch in batches)
    capped = calibrate(model, (batch for batch in batches), samples=9, progress=False)
    assert (capped.batches, capped.samples) == (3, 12)
    only = calibrate(model, batches, include=["u*"], exclude=["unused"], observer="mse", progress=False)
    assert list(only.observers) == ["used"]


def test_calibrate_says_what_is_wrong() -> None:
    model = Branches()
    with pytest.raises(SwapError, match="no batch"):
        calibrate(model, [], progress=False)
    with pytest.raises(SwapError, match="conv, calibration batch 1: the input holds NaN"):
        calibrate(model, [torch.ones(1, 1, 4, 4), torch.full((1, 1, 4, 4), math.nan)], progress=False)
    with pytest.raises(ValueError, match="no linear or convolution layer"):
        calibrate(model, [], include=["nothing"], progress=False)
    with pytest.raises(ValueError, match="unknown observer 'max'; known: entropy, minmax"):
        calibrate(model, [], observer="max", progress=False)
    with pytest.raises(ValueError, match="belongs to"):
        register_observer(type("Mine", (Observer,), {"name": "minmax"}))

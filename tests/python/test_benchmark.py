"""Interleaved timing and energy counters."""

from __future__ import annotations

import gc
import json
import time
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import tersor
from tersor import text
from tersor.benchmark import interleave
from tersor.energy import EnergyMeter
from tersor.errors import TersorError
from tersor.torch_int8 import dynamic_int8, engines

module = import_module("tersor.benchmark")  # `tersor.benchmark` is the function


def test_the_ratio_tells_how_many_times_faster_b_is() -> None:
    result = tersor.benchmark(
        lambda x: time.sleep(0.02), lambda x: time.sleep(0.002), torch.ones(1), rounds=5, names=("slow", "fast")
    )
    assert 3 < result.ratio < 11
    assert result.ratio == pytest.approx(result.a.median_ms / result.b.median_ms)
    assert result.a.median_ms >= result.a.min_ms >= 20
    assert (result.a.name, result.b.name, result.rounds) == ("slow", "fast", 5)


def test_the_contestants_take_turns() -> None:
    order: list[str] = []

    def run(name: str) -> None:
        time.sleep(0.003)
        order.append(name)

    laps = interleave({"a": lambda: run("a"), "b": lambda: run("b")}, rounds=4, warmup=0, turn_seconds=0.003)
    turns = "".join(order)[2:]  # one call each to see how long it takes
    assert turns == "ab" * 4
    assert [len(lap.seconds) for lap in laps.values()] == [4, 4]


def test_a_turn_of_a_quick_call_is_many_calls() -> None:
    count = 0

    def quick() -> None:
        nonlocal count
        count += 1

    laps = interleave({"quick": quick}, rounds=1, warmup=0, turn_seconds=0.01)
    assert laps["quick"].calls == count - 1 > 100


@pytest.mark.parametrize(
    "inputs", [torch.ones(2, 4), (torch.ones(2, 4),), [torch.ones(2, 4)], {"input": torch.ones(2, 4)}]
)
def test_models_take_tensors_arguments_and_keywords(inputs: object) -> None:
    result = tersor.benchmark(nn.Linear(4, 4), nn.Linear(4, 4), inputs, rounds=2)
    assert result.a.median_ms > 0
    assert result.b.median_ms > 0


def test_threads_gradients_and_the_garbage_collector_are_put_back() -> None:
    before = torch.get_num_threads()
    seen: list[tuple[int, bool, bool]] = []

    def look(x: torch.Tensor) -> None:
        seen.append((torch.get_num_threads(), torch.is_grad_enabled(), gc.isenabled()))
        if len(seen) > 10:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        tersor.benchmark(look, look, torch.ones(1), threads=1)
    assert seen[-1] == (1, False, False)
    assert (torch.get_num_threads(), torch.is_grad_enabled(), gc.isenabled()) == (before, True, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "rounds >= 1"),
        ({"warmup": -1}, "warmup >= 0"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"names": ("x", "x")}, "two different names"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(TersorError, match=message):
        tersor.benchmark(abs, abs, torch.ones(1), **arguments)


@pytest.mark.parametrize("width", [80, 100])
def test_table_and_json(width: int) -> None:
    result = tersor.benchmark(abs, abs, torch.ones(1), rounds=2, names=("a model [v1]", "b"))
    table = result.table(width)
    assert max(map(len, table.splitlines())) <= width
    assert "a model [v1]" in table
    assert f"b is {result.ratio:.2f}x as fast as a model [v1]." in table
    data = json.loads(result.to_json())
    assert (data["schema"], data["ratio"], data["threads"]) == (
        "tersor.benchmark/1", result.ratio, torch.get_num_threads(),
    )  # fmt: skip


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    for zone, counter in (("intel-rapl:0", 900), ("intel-rapl:1", 5_000_000), ("intel-rapl:0:0", 77)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "max_energy_range_uj").write_text("1000\n" if zone == "intel-rapl:0" else "9000000\n")
        (tmp_path / zone / "energy_uj").write_text(f"{counter}\n")
    return tmp_path


def test_energy_sums_the_packages_and_survives_the_wrap(powercap: Path) -> None:
    meter = EnergyMeter(powercap)
    assert meter.available
    (powercap / "intel-rapl:0" / "energy_uj").write_text("100")  # 900 -> 1000 -> 100
    (powercap / "intel-rapl:1" / "energy_uj").write_text("7000000")
    (powercap / "intel-rapl:0:0" / "energy_uj").write_text("99999")  # a part of a package, counted there
    assert meter.lap() == pytest.approx(2.0002)
    assert meter.lap() == 0


def test_energy_per_call_is_told_by_the_benchmark(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EnergyMeter", lambda gpu: EnergyMeter(powercap, gpu))
    counter = powercap / "intel-rapl:1" / "energy_uj"

    def burn(x: torch.Tensor) -> None:
        counter.write_text(str(int(counter.read_text()) + 1000))
        time.sleep(0.01)

    result = tersor.benchmark(burn, lambda x: time.sleep(0.01), torch.ones(1), rounds=2, warmup=0)
    assert result.a.joules == pytest.approx(1e-3)
    assert result.b.joules == 0
    assert "1 mJ" in result.table()


def test_energy_that_cannot_be_read_is_not_available(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not EnergyMeter(powercap / "nowhere").available
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    meter = EnergyMeter(powercap)
    assert not meter.available
    assert meter.lap() is None
    monkeypatch.setattr(module, "EnergyMeter", lambda gpu: EnergyMeter(powercap, gpu))
    result = tersor.benchmark(abs, abs, torch.ones(1), rounds=1)
    assert result.a.joules is None
    assert "not available" in result.table()


def test_a_time_limit_ends_the_rounds_after_five() -> None:
    laps = interleave({"nap": lambda: time.sleep(0.005)}, rounds=1000, warmup=0, turn_seconds=0, seconds=0.0)
    assert len(laps["nap"].seconds) == 5
    laps = interleave({"nap": lambda: time.sleep(0.005)}, rounds=1000, warmup=0, turn_seconds=0, seconds=0.1)
    assert 5 <= len(laps["nap"].seconds) <= 21


@pytest.mark.parametrize("engine", engines())
def test_torchs_int8_is_a_copy_and_leaves_the_engine_as_it_was(engine: str) -> None:
    model, before = nn.Sequential(nn.Linear(32, 16)), torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = dynamic_int8(model, engine)
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    assert type(model[0]) is nn.Linear
    assert "quantized" in type(next(made.children())).__module__
    torch.testing.assert_close(made(x), model(x), atol=0.05, rtol=0)
    assert torch.backends.quantized.engine == before


def test_a_written_file_replaces_the_old_one_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    text.write(tmp_path / "f", "größer")
    assert (tmp_path / "f").read_text(encoding="utf-8") == "größer"
    with pytest.raises(OSError, match="No such file"):
        text.write(tmp_path / "no" / "f", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_turn_after_a_rest_begins_with_a_call_that_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(module.time, "sleep", lambda seconds: events.append(f"rest {seconds}"))
    runs = {name: lambda name=name: events.append(name) for name in ("a", "b")}
    laps = interleave(runs, rounds=2, warmup=0, turn_seconds=0.0, rest=0.5)
    assert events == ["a", "b", *["rest 0.5", "a", "a", "rest 0.5", "b", "b"] * 2]
    assert [(len(lap.seconds), lap.calls) for lap in laps.values()] == [(2, 2), (2, 2)]

"""Two models (or any callables) timed against each other in one interleaved run."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from tersor import host, text
from tersor.energy import EnergyMeter, gpu_of
from tersor.errors import TersorError
from tersor.observe import call as call_with

SCHEMA = "tersor.benchmark/1"
_FEWEST_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Timing:
    """One contestant.

    Attributes:
        name: its label.
        median_ms: the median over rounds of the milliseconds per call.
        min_ms: the fastest round.
        spread: interquartile range of the rounds over their median; large means a busy host.
        joules: energy of the CPU packages, and of the GPU at work, per call; None where the host can't tell.
    """

    name: str
    median_ms: float
    min_ms: float
    spread: float
    joules: float | None


@dataclasses.dataclass(frozen=True)
class BenchmarkResult:
    """What :func:`benchmark` measured.

    Attributes:
        a, b: the two contestants.
        ratio: how many times faster ``b`` is than ``a``: the ratio of their medians.
        rounds: rounds measured; each times ``a`` and ``b`` once.
        threads: torch threads.
        cpu: the CPU it was measured on.
    """

    a: Timing
    b: Timing
    ratio: float
    rounds: int
    threads: int
    cpu: str

    def table(self, width: int = 100, color: bool = False) -> str:
        """The result as text of at most ``width`` columns."""
        table = text.plain_table("", "median ms", "fastest ms", "spread", "energy per call")
        for timing in (self.a, self.b):
            energy = "not available" if timing.joules is None else f"{timing.joules * 1e3:.3g} mJ"
            spread = f"{100 * timing.spread:.1f} %"
            table.add_row(Text(timing.name), f"{timing.median_ms:.3f}", f"{timing.min_ms:.3f}", spread, energy)
        line = f"{self.b.name} is {self.ratio:.2f}x as fast as {self.a.name}."
        how = f"Interleaved medians of {self.rounds} rounds, {self.threads} threads, {self.cpu}."
        return text.render(table, line, how, width=width, color=color)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a ``schema`` key."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    def to_json(self, path: str | Path | None = None) -> str:
        """The result as JSON text, also written to ``path`` where one is given."""
        content = json.dumps(self.to_dict(), indent=2) + "\n"
        if path is not None:
            text.write(path, content)
        return content

    def __str__(self) -> str:
        return self.table()


def benchmark(
    a: Callable[..., Any],
    b: Callable[..., Any],
    inputs: Any,
    *,
    rounds: int = 15,
    warmup: int = 3,
    threads: int | None = None,
    names: tuple[str, str] = ("a", "b"),
) -> BenchmarkResult:
    """Time two models on the same inputs, taking turns, so that whatever else the host does hits both alike.

    The models run as they are, in inference mode; call ``eval()`` first.

    Args:
        a, b: models or other callables.
        inputs: a tensor, a tuple or list of arguments, or a mapping of keyword arguments.
        rounds: how often each takes its turn; a turn lasts at least 10 ms.
        warmup: calls before the first round.
        threads: torch threads during the run; None leaves them.
        names: labels of ``a`` and ``b``.

    Raises:
        TersorError: ``rounds``, ``warmup`` or ``threads`` is out of range.
    """
    if rounds < 1 or warmup < 0:
        raise TersorError(f"benchmark needs rounds >= 1 and warmup >= 0, got {rounds} and {warmup}")
    if len(names) != 2 or names[0] == names[1]:
        raise TersorError(f"benchmark needs two different names, got {names!r}")
    meter = EnergyMeter(gpu=gpu_of(a, b, inputs))
    runs = {name: _bound(model, inputs) for name, model in zip(names, (a, b), strict=True)}
    with torch_threads(threads), torch.inference_mode():
        laps = interleave(runs, rounds=rounds, warmup=warmup, turn_seconds=0.01, meter=meter)
        first, second = (_timing(name, laps[name]) for name in names)
        count = torch.get_num_threads()
    return BenchmarkResult(first, second, first.median_ms / second.median_ms, rounds, count, host.cpu_model())


def _bound(model: Callable[..., Any], inputs: Any) -> Callable[[], Any]:
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)  # a BatchEncoding unpacks more slowly than a dict
    return lambda: call_with(model, inputs)  # type: ignore[arg-type]  # any callable does


@dataclasses.dataclass
class Laps:
    """Seconds per call, one number per round, and the joules of all calls (None where the host can't tell)."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    joules: float | None = None
    calls: int = 0

    @property
    def median(self) -> float:
        """The median of the rounds, seconds per call."""
        return statistics.median(self.seconds)


def _timing(name: str, laps: Laps) -> Timing:
    median = laps.median
    low, _, high = statistics.quantiles(laps.seconds, n=4) if len(laps.seconds) > 1 else (median,) * 3
    joules = None if laps.joules is None else laps.joules / laps.calls
    return Timing(name, median * 1e3, min(laps.seconds) * 1e3, (high - low) / median, joules)


def interleave(
    runs: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warmup: int = 3,
    turn_seconds: float = 0.01,
    seconds: float = math.inf,
    rest: float = 0.0,
    meter: EnergyMeter | None = None,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Laps]:
    """Time callables in turns: every round gives each of them one turn of about ``turn_seconds``.

    Args:
        seconds: time after which no further round begins, once there are five.
        rest: seconds without work before each turn, which then begins with a call that is not timed. Threads that wait
            for work in a loop are asleep by then: those of ONNX Runtime take a core for 50 ms after its last call.
        progress: called after every round.

    Returns:
        The laps by name, one number per round.
    """
    calls = {name: _calls_per_turn(run, warmup, turn_seconds) for name, run in runs.items()}
    laps = {name: Laps(joules=0.0 if meter is not None and meter.available else None) for name in runs}
    with _without_gc():
        started = time.perf_counter()
        for index in range(rounds):
            if index >= _FEWEST_ROUNDS and time.perf_counter() - started > seconds:
                break
            for name, run in runs.items():
                if rest > 0:
                    time.sleep(rest)
                    run()
                _turn(run, calls[name], laps[name], meter)
            progress()
    return laps


def _calls_per_turn(run: Callable[[], Any], warmup: int, turn_seconds: float) -> int:
    for _ in range(warmup):
        run()
    started = time.perf_counter()
    run()
    return max(1, min(10_000, round(turn_seconds / max(time.perf_counter() - started, 1e-7))))


def _turn(run: Callable[[], Any], calls: int, laps: Laps, meter: EnergyMeter | None) -> None:
    if meter is not None:
        meter.lap()
    started = time.perf_counter()
    for _ in range(calls):
        run()
    laps.seconds.append((time.perf_counter() - started) / calls)
    laps.calls += calls
    if laps.joules is not None and meter is not None:
        joules = meter.lap()
        laps.joules = None if joules is None else laps.joules + joules


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Torch's thread count set to ``threads`` while the block runs; None leaves it.

    Raises:
        TersorError: less than one thread.
    """
    if threads is None:
        yield
        return
    if threads < 1:
        raise TersorError(f"threads must be at least 1, got {threads}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

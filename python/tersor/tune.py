"""Is int8 faster here? Measures float against int8 layers on this host and remembers the answers.

How it measures: the float layer and the int8 layer of the same shape, dtype and bias take turns on the same input;
the medians over the rounds are compared. Close calls are measured longer. Where the rounds scatter or the scheduler
took the CPU away, because the host is busy, the fastest calls on one thread are compared instead (threads that wait for
each other on a busy host measure its scheduler), and the result is not remembered.

A model runs one layer after another, so a layer's weights are not in the caches closest to the core when its turn
comes. To come near that, each side walks through as many copies of the layer as the float weights need to fill 16 MiB
(at most 32), which is several times a core's L2: weights then come from L3 on both sides, as they do within a model.
Both sides walk through the same number of copies. This favours float where a float model would overflow L3 and the
int8 one would not; a layer that is swapped is faster in either case.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tersor import observe, text
from tersor.benchmark import Laps, interleave, torch_threads
from tersor.errors import SwapError, TersorError
from tersor.modules import Candidate, find_candidates
from tersor.nn import Int8Linear
from tersor.nn.float_linear import is_conv1d
from tersor.progress import track
from tersor.tune_cache import Times, TuneCache, cache_key
from tersor.tune_result import TunedLayer, TuneResult

BUCKETS = (1, 4, 16, 64, 256)
"""Numbers of rows that are measured; a layer with other numbers is judged by the next bucket up, at most 256."""
MARGIN = 0.05
"""How much faster int8 has to be than float: float time / int8 time >= 1 + MARGIN."""

_WORKING_SET = 16 << 20
_MOST_COPIES = 32
_TURN_SECONDS = 1e-3
_ROUNDS = (3, 5, 14)  # the last ones for close calls only
_CLOSE = 0.1
_BUSY, _BUSY_SECONDS = 1.6, 0.03


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Float against int8 for one layer.

    Attributes:
        faster: int8 beats float by the margin at every bucket that was asked for.
        float_us, tersor_us: median microseconds per call by bucket.
        margin: the margin asked for, as a fraction.
        reason: both times at the bucket that speaks most against int8, in words.
    """

    faster: bool
    float_us: dict[int, float]
    tersor_us: dict[int, float]
    margin: float
    reason: str


def bucket_of(rows: int) -> int:
    """The bucket that stands for a number of rows: the next one up, at most 256."""
    return next((bucket for bucket in BUCKETS if rows <= bucket), BUCKETS[-1])


def decide(
    float_us: dict[int, float], tersor_us: dict[int, float], margin: float = MARGIN, kind: str = "int8"
) -> Verdict:
    """The verdict on measured times of float and another kind of layer, microseconds by bucket."""
    worst = min(float_us, key=lambda rows: float_us[rows] / tersor_us[rows])
    before, after = float_us[worst], tersor_us[worst]
    faster = before / after >= 1 + margin
    ending = "swapped" if faster else "kept"
    if not faster and after < before:
        ending = f"less than {margin:.0%} faster, kept"
    at = f"{worst} {'row' if worst == 1 else 'rows'}"
    reason = f"float {text.microseconds(before)} us, {kind} {text.microseconds(after)} us at {at}: {ending}"
    return Verdict(faster, float_us, tersor_us, margin, reason)


class Tuner:
    """Judges layers on this host and thread count.

    Args:
        threads: torch threads to measure with; None takes what torch is set to.
        cache: remember measurements in the user's cache folder; False measures everything anew.
        progress: told what is measured next, before every measurement.

    Raises:
        NativeError: the compiled part of tersor is missing.
    """

    def __init__(
        self, threads: int | None = None, cache: bool = True, progress: Callable[[str], None] | None = None
    ) -> None:
        if threads is not None and threads < 1:
            raise TersorError(f"threads must be at least 1, got {threads}")
        self.threads = torch.get_num_threads() if threads is None else threads
        self.measured = 0
        self._progress = progress
        self._busy: set[tuple[str, int]] = set()
        self._cache = TuneCache(cache_key(self.threads), persistent=cache)

    def judge(self, layer: nn.Module, rows: Iterable[int] | None = None, dtype: torch.dtype | None = None) -> Verdict:
        """Float against int8 for a linear layer (nn.Linear or transformers' Conv1D).

        Args:
            layer: the float layer, on the CPU; it is neither changed nor called.
            rows: numbers of input rows it is used with; None (or none) means every bucket.
            dtype: of its input; None takes that of its weight.

        Raises:
            ValueError: the layer can't become an int8 layer.
        """
        buckets = sorted({bucket_of(count) for count in rows or BUCKETS}) or list(BUCKETS)
        weight = layer._parameters.get("weight")
        if weight is None:
            raise ValueError(f"{type(layer).__name__} has no weight to measure")
        dtype = dtype or weight.dtype
        name = describe_layer(layer, dtype)
        missing = [bucket for bucket in buckets if self._cache.get(name, bucket) is None]
        if missing:
            with torch_threads(self.threads), torch.inference_mode():
                self._measure(layer, name, dtype, missing)
            self._cache.save()
        times = {bucket: self._known(name, bucket) for bucket in buckets}
        verdict = decide({b: pair[0] for b, pair in times.items()}, {b: pair[1] for b, pair in times.items()})
        if any((name, bucket) in self._busy for bucket in buckets):
            return dataclasses.replace(verdict, reason=f"{verdict.reason} (busy host, measured on one thread)")
        return verdict

    def _known(self, name: str, bucket: int) -> Times:
        times = self._cache.get(name, bucket)
        assert times is not None
        return times

    def _measure(self, layer: nn.Module, name: str, dtype: torch.dtype, buckets: Sequence[int]) -> None:
        floats = float_copies(layer, dtype)
        packed = Int8Linear.from_float(floats[0])
        packs = [packed, *(copy.deepcopy(packed) for _ in floats[1:])]
        width = packed.in_features
        for bucket in buckets:
            if self._progress is not None:
                self._progress(f"{name} at {bucket} rows")
            x = torch.randn((bucket, width), generator=torch.Generator().manual_seed(0)).to(dtype)
            times, calm = race(floats, packs, x)
            self._cache.put(name, bucket, times, remember=calm)
            if not calm:
                self._busy.add((name, bucket))
            self.measured += 1


def race(floats: Sequence[nn.Module], packs: Sequence[nn.Module], x: Tensor) -> tuple[Times, bool]:
    """Microseconds of both sides, and whether the host was calm enough to remember them."""
    runs = {"float": _walk(floats, x), "int8": _walk(packs, x)}
    switches, laps = _switches(), {name: Laps() for name in runs}
    for rounds in _ROUNDS:
        for name, more in interleave(runs, rounds=rounds, warmup=2, turn_seconds=_TURN_SECONDS).items():
            laps[name].seconds += more.seconds
        if not _calm(laps) or _switches() - switches > len(laps["float"].seconds) // 2:
            with torch_threads(1):
                return (_fastest(runs["float"]) * 1e6, _fastest(runs["int8"]) * 1e6), False
        ratio = laps["float"].median / laps["int8"].median
        if rounds == _ROUNDS[1] and abs(ratio / (1 + MARGIN) - 1) > _CLOSE:
            break
    return (laps["float"].median * 1e6, laps["int8"].median * 1e6), True


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest call within some time."""
    best, started = math.inf, time.perf_counter()
    deadline = started + _BUSY_SECONDS
    while started < deadline:
        run()
        ended = time.perf_counter()
        best, started = min(best, ended - started), ended
    return best


def _switches() -> int:
    """How often the scheduler took a CPU away from this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _calm(laps: Mapping[str, Laps]) -> bool:
    return all(lap.median <= _BUSY * min(lap.seconds) for lap in laps.values())


def _walk(layers: Sequence[nn.Module], x: Tensor) -> Callable[[], Tensor]:
    following = itertools.cycle(layers).__next__
    return lambda: following()(x)


def float_copies(layer: nn.Module, dtype: torch.dtype) -> list[nn.Module]:
    """Bare layers, without hooks, with the layer's values; the first shares the layer's memory where dtypes agree."""
    parameters = {key: value.detach().to(dtype) for key, value in layer._parameters.items() if value is not None}
    size = parameters["weight"].numel() * parameters["weight"].element_size()
    count = max(1, min(_MOST_COPIES, -(-_WORKING_SET // max(size, 1))))
    copies = []
    for index in range(count):
        with torch.device("meta"):
            bare = _bare(layer)
        for key, value in parameters.items():
            own = value if index == 0 else value.clone()
            bare._parameters[key] = nn.Parameter(own, requires_grad=False)
        copies.append(bare.eval())
    return copies


def _bare(layer: nn.Module) -> nn.Module:
    weight: Any = layer._parameters["weight"]
    if is_conv1d(layer):
        from transformers.pytorch_utils import Conv1D

        return Conv1D(weight.shape[1], weight.shape[0])  # type: ignore[no-untyped-call]
    return nn.Linear(weight.shape[1], weight.shape[0], layer._parameters.get("bias") is not None)


def describe_layer(layer: nn.Module, dtype: torch.dtype) -> str:
    """The shape, bias and dtype of a float layer in words, the key of its measurements."""
    weight: Any = layer._parameters["weight"]
    first, second = weight.shape[::-1] if is_conv1d(layer) else weight.shape
    kind = "conv1d " if is_conv1d(layer) else ""
    bias = "+bias" if layer._parameters.get("bias") is not None else ""
    return f"{kind}{first}x{second}{bias} {str(dtype).removeprefix('torch.')}"


def tune(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    threads: int | None = None,
    cache: bool = True,
    progress: bool = True,
) -> TuneResult:
    """Measure, for every linear layer of ``model``, whether int8 is faster on this host, and for every encoder block
    whose layers are, whether one call is. The model is not changed.

    Args:
        model: the float model, on the CPU.
        example_inputs: what the model is usually given (a tensor, a tuple or list of arguments, a mapping of keyword
            arguments); layers are judged for the numbers of rows that it brings to them. None: for every bucket.
        threads: torch threads to measure with; None takes what torch is set to.
        cache: use and fill the cache in the user's cache folder; False measures everything anew.
        progress: a progress bar on a terminal.

    Raises:
        SwapError: the model holds no linear layer, or failed on the inputs.
        NativeError: the compiled part of tersor is missing.
    """
    started = time.perf_counter()
    tuner = Tuner(threads=threads, cache=cache)
    candidates = find_candidates(model)
    if not candidates:
        raise SwapError("the model holds no linear layer (nn.Linear or transformers' Conv1D)")
    seen = None
    if example_inputs is not None:
        seen = observe.observe_rows(model, [candidate.module for candidate in candidates], example_inputs)
    layers = []
    for candidate in track(candidates, "measuring layers", shown=progress):
        entry = None if seen is None else seen.get(id(candidate.module), observe.Seen())
        layers.append(_tuned(tuner, candidate, entry))
    from tersor.tune_block import tune_blocks  # it builds on this module

    blocks, measured = tune_blocks(model, candidates, layers, example_inputs, tuner.threads, cache, progress)
    key = cache_key(tuner.threads)
    return TuneResult(tuple(layers), key, tuner.measured + measured, time.perf_counter() - started, blocks)


def _tuned(tuner: Tuner, candidate: Candidate, seen: observe.Seen | None) -> TunedLayer:
    """One layer judged; ``seen`` is what it was given, None where the model was not run."""
    module = candidate.module
    if candidate.refusal is not None:
        return TunedLayer(candidate.names, type(module).__name__, (), None, candidate.refusal)
    weight: Any = module._parameters["weight"]
    name = describe_layer(module, weight.dtype if seen is None else seen.dtype)
    if seen is not None and not seen.rows:
        return TunedLayer(candidate.names, name, (), None, "never called on example_inputs")
    rows = () if seen is None else tuple(sorted(seen.rows))
    try:
        verdict = tuner.judge(module, rows, None if seen is None else seen.dtype)
    except ValueError as error:
        return TunedLayer(candidate.names, name, rows, None, str(error))
    return TunedLayer(candidate.names, name, rows, verdict, verdict.reason)

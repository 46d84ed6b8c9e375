"""Is a low-rank layer faster here? Fused factors against two float products, and against the dense layer.

As in tersor.tune two layers take turns on the same input, each walking through as many copies of itself as fill 16 MiB.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from tersor import text
from tersor.benchmark import torch_threads
from tersor.factorize.factored_linear import FactoredLinear
from tersor.factorize.rank import ROUND_TO, break_even
from tersor.nn import Int8Linear, LowRankInt8Linear, LowRankLinear
from tersor.tune import BUCKETS, MARGIN, Tuner, Verdict, bucket_of, race
from tersor.tune_cache import Times

_WORKING_SET = 16 << 20
_MOST_COPIES = 32


class LowRankTuner(Tuner):
    """Judges low-rank layers. Arguments and cache are those of Tuner."""

    def judge_factored(
        self, layer: FactoredLinear, rows: Iterable[int], dtype: torch.dtype, quantised: bool
    ) -> Verdict:
        """Two float products against the fused call, int8 where `quantised`.

        Raises:
            ValueError: the layer can't become a low-rank layer.
        """
        buckets = sorted({bucket_of(count) for count in rows or BUCKETS})
        kind = "int8" if quantised else "float"
        name = f"{_extents(layer)} rank {layer.rank} {_name(dtype)}, two products against fused {kind}"
        times = self._race(name, buckets, layer.to(dtype) if layer.weight_up.dtype != dtype else layer, quantised, None)
        before = {bucket: pair[0] for bucket, pair in times.items()}
        after = {bucket: pair[1] for bucket, pair in times.items()}
        worst = min(buckets, key=lambda bucket: before[bucket] / after[bucket])
        faster = before[worst] / after[worst] >= 1 + MARGIN
        reason = (
            f"two float products {text.microseconds(before[worst])} us, fused {kind} "
            f"{text.microseconds(after[worst])} us at {worst} {'row' if worst == 1 else 'rows'}: "
            f"{'swapped' if faster else 'kept'}"
        )
        return Verdict(faster, before, after, MARGIN, reason)

    def gains(
        self, layer: nn.Linear, rank: int, rows: Iterable[int], dtype: torch.dtype, quantised: bool
    ) -> dict[int, float]:
        """How many times as fast as the dense layer, by bucket, a fused one of this rank is; both int8 if `quantised`.

        Only the shape of `layer` matters; the values are random.
        """
        buckets = sorted({bucket_of(count) for count in rows or BUCKETS})
        kind = "int8" if quantised else "float"
        factored = _example(layer, rank, dtype)
        name = f"{_extents(factored)} {_name(dtype)}, dense {kind} against rank {rank}"
        times = self._race(name, buckets, factored, quantised, nn.Linear)
        return {bucket: before / after for bucket, (before, after) in times.items()}

    def largest_rank(
        self, layer: nn.Linear, gain: float, rows: Iterable[int], dtype: torch.dtype, quantised: bool
    ) -> int | None:
        """The largest multiple of ROUND_TO at which fused is `gain` times as fast as dense, or None."""
        rows = tuple(rows)
        low, high = 0, max(break_even(layer.out_features, layer.in_features) // ROUND_TO, 1)  # low: known to do
        while low < high:
            middle = (low + high + 1) // 2
            rank = min(middle * ROUND_TO, layer.out_features, layer.in_features)
            if min(self.gains(layer, rank, rows, dtype, quantised).values()) >= gain:
                low = middle
            else:
                high = middle - 1
        return min(low * ROUND_TO, layer.out_features, layer.in_features) or None

    def _race(
        self, name: str, buckets: Sequence[int], factored: FactoredLinear, quantised: bool, dense: type | None
    ) -> dict[int, Times]:
        missing = [bucket for bucket in buckets if self._cache.get(name, bucket) is None]
        if missing:
            with torch_threads(self.threads), torch.inference_mode():
                before: nn.Module = factored if dense is None else _dense(factored, quantised)
                after = (LowRankInt8Linear if quantised else LowRankLinear).from_float(factored)
                size = 4 * sum(parameter.numel() for parameter in factored.parameters())
                count = max(1, min(_MOST_COPIES, -(-_WORKING_SET // size)))
                sides = [[layer, *(copy.deepcopy(layer) for _ in range(count - 1))] for layer in (before, after)]
                for bucket in missing:
                    if self._progress is not None:
                        self._progress(f"{name} at {bucket} rows")
                    x = torch.randn((bucket, factored.in_features), generator=torch.Generator().manual_seed(0))
                    times, calm = race(sides[0], sides[1], x.to(factored.weight_up.dtype))
                    self._cache.put(name, bucket, times, remember=calm)
                    self.measured += 1
            self._cache.save()
        return {bucket: self._known(name, bucket) for bucket in buckets}


def _extents(layer: FactoredLinear) -> str:
    return f"{layer.out_features}x{layer.in_features}{'+bias' if layer.bias is not None else ''}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _example(layer: nn.Linear, rank: int, dtype: torch.dtype) -> FactoredLinear:
    """Random factors of the shape of a layer."""
    generator = torch.Generator().manual_seed(0)
    down = torch.randn((rank, layer.in_features), generator=generator) * layer.in_features**-0.5
    up = torch.randn((layer.out_features, rank), generator=generator) * rank**-0.5
    bias = None if layer.bias is None else torch.zeros(layer.out_features, dtype=dtype)
    return FactoredLinear.from_factors(down.to(dtype), up.to(dtype), bias).eval()


def _dense(factored: FactoredLinear, quantised: bool) -> nn.Module:
    layer = nn.Linear(factored.in_features, factored.out_features, factored.bias is not None)
    layer.weight = nn.Parameter(factored.weight.detach(), requires_grad=False)
    if factored.bias is not None:
        layer.bias = nn.Parameter(factored.bias.detach(), requires_grad=False)
    return Int8Linear.from_float(layer) if quantised else layer.eval()

"""Is a sparse layer faster than the dense one here? Measured for a pruned layer, at its own density and pattern.

As in tersor.tune two layers take turns: the sparse one, and the dense one that it would replace, which is int8 where
the weights are quantised and float where they are not. Int8 against float is measured on its own.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tersor import text
from tersor.benchmark import torch_threads
from tersor.nn import Int8Linear, SparseInt8Linear, SparseLinear
from tersor.nn.float_linear import weight_matrix
from tersor.tune import BUCKETS, MARGIN, Tuner, Verdict, bucket_of, describe_layer, float_copies, race
from tersor.tune_cache import Times

_PATTERNS = ("1x4", "unstructured")  # what is compared in the report


@dataclasses.dataclass(frozen=True)
class SparseVerdict:
    """What a pruned layer should become.

    Attributes:
        layer: "sparse", "int8" or "float", the fastest by the margin at every bucket.
        verdict: float against that layer.
        remark: the other pattern's price, or the sparsity from which on sparse would win; in words.
    """

    layer: str
    verdict: Verdict
    remark: str


class SparseTuner(Tuner):
    """Judges pruned layers. Arguments and cache are those of Tuner."""

    def judge_sparse(
        self, layer: nn.Module, rows: Iterable[int], dtype: torch.dtype, pattern: str, quantised: bool
    ) -> SparseVerdict:
        """Float, int8 where `quantised`, and sparse, for a pruned nn.Linear whose zeros lie in `pattern`.

        Raises:
            ValueError: the layer can't become a sparse or an int8 layer.
        """
        buckets = sorted({bucket_of(count) for count in rows or BUCKETS})
        dense = self.judge(layer, buckets, dtype) if quantised else None
        sparse = self._times(layer, layer, dtype, pattern, quantised, buckets)
        gains = {bucket: before / after for bucket, (before, after) in sparse.items()}  # over what it replaces
        floats = {bucket: times[0] for bucket, times in sparse.items()}
        if dense is not None:
            floats = dense.float_us
        replaced = dense.tersor_us if dense is not None else floats
        own = {bucket: replaced[bucket] / gains[bucket] for bucket in buckets}  # on the scale of the first measurement
        worst = min(buckets, key=lambda bucket: min(gains[bucket], floats[bucket] / own[bucket]))
        wins = all(min(gains[b], floats[b] / own[b]) >= 1 + MARGIN for b in buckets)
        kind = "sparse int8" if quantised else "sparse float"
        middle = f", int8 {text.microseconds(dense.tersor_us[worst])} us" if dense is not None else ""
        facts = f"float {text.microseconds(floats[worst])} us{middle}, {kind} {pattern} "
        facts += f"{text.microseconds(own[worst])} us at {worst} {'row' if worst == 1 else 'rows'}"
        if wins:
            remark = self._other_pattern(layer, dtype, pattern, quantised, buckets[-1])
            return SparseVerdict("sparse", Verdict(True, floats, own, MARGIN, f"{facts}: sparse. {remark}"), remark)
        goal = min(1.0, floats[worst] / replaced[worst]) / (1 + MARGIN)
        remark = self._needed(layer, dtype, pattern, quantised, worst, goal)
        if dense is not None and dense.faster:
            return SparseVerdict("int8", dataclasses.replace(dense, reason=f"{facts}: dense int8. {remark}"), remark)
        verdict = dense or Verdict(False, floats, own, MARGIN, "")
        return SparseVerdict("float", dataclasses.replace(verdict, reason=f"{facts}: kept float. {remark}"), remark)

    def _other_pattern(self, layer: nn.Module, dtype: torch.dtype, pattern: str, quantised: bool, bucket: int) -> str:
        other = next(name for name in _PATTERNS if name != pattern)
        made = _example(layer, other, _density(layer))
        own = self._times(layer, layer, dtype, pattern, quantised, [bucket])[bucket]
        price = self._times(layer, made, dtype, other, quantised, [bucket])[bucket]
        ratio = (price[1] / price[0]) / (own[1] / own[0])
        return f"At {bucket} rows {other} zeros would take {ratio:.2f} times as long as {pattern}"

    def _needed(
        self, layer: nn.Module, dtype: torch.dtype, pattern: str, quantised: bool, bucket: int, goal: float
    ) -> str:
        """From which sparsity on sparse takes `goal` times as long as what it replaces, from a line through its times
        at this density and at half of it."""
        density = _density(layer)
        before, after = self._times(layer, layer, dtype, pattern, quantised, [bucket])[bucket]
        kind = pattern if "x" in pattern else "unstructured"
        made = _example(layer, kind, density / 2)
        again, half = self._times(layer, made, dtype, kind, quantised, [bucket])[bucket]
        full, half = after / before, half / again  # in units of the dense layer's time
        slope = (full - half) / max(density - _density(made), 1e-9)
        limit = density - (full - goal) / slope if slope > 0 else 0.0
        has = f"it has {100 * (1 - density):.0f} %"
        if not 0 < limit < 1:
            return f"No sparsity would do, {has}"
        return f"Sparse needs about {100 * (1 - limit):.0f} % sparsity, {has}"

    def _times(
        self,
        layer: nn.Module,
        pruned: nn.Module,
        dtype: torch.dtype,
        pattern: str,
        quantised: bool,
        buckets: Sequence[int],
    ) -> dict[int, Times]:
        """Microseconds of the dense layer and of a sparse one with the weight of `pruned`, by bucket."""
        kind = "int8" if quantised else "float"
        name = f"{describe_layer(layer, dtype)}, {kind} against {pattern} at density {_density(pruned):.3g}"
        missing = [bucket for bucket in buckets if self._cache.get(name, bucket) is None]
        if missing:
            with torch_threads(self.threads), torch.inference_mode():
                self._measure_sparse(pruned, name, dtype, pattern, quantised, missing)
            self._cache.save()
        return {bucket: self._known(name, bucket) for bucket in buckets}

    def _measure_sparse(
        self, pruned: nn.Module, name: str, dtype: torch.dtype, pattern: str, quantised: bool, buckets: Sequence[int]
    ) -> None:
        floats = float_copies(pruned, dtype)
        dense, make = floats, _sparse_class(quantised)
        if quantised:
            dense = _copies(Int8Linear.from_float(floats[0]), len(floats))
        sparse = _copies(make.from_float(floats[0], pattern=pattern), len(floats))
        width = weight_matrix(pruned).shape[1]
        for bucket in buckets:
            if self._progress is not None:
                self._progress(f"{name} at {bucket} rows")
            x = torch.randn((bucket, width), generator=torch.Generator().manual_seed(0)).to(dtype)
            times, calm = race(dense, sparse, x)
            self._cache.put(name, bucket, times, remember=calm)
            self.measured += 1


def _sparse_class(quantised: bool) -> Any:
    return SparseInt8Linear if quantised else SparseLinear


def _copies(layer: nn.Module, count: int) -> list[nn.Module]:
    return [layer, *(copy.deepcopy(layer) for _ in range(count - 1))]


def _density(layer: nn.Module) -> float:
    weight = weight_matrix(layer)
    return int(torch.count_nonzero(weight)) / weight.numel()


def _example(layer: nn.Module, pattern: str, density: float) -> nn.Module:
    """A layer of the same shape with random weights, of which a share of `density` is not 0, in `pattern`."""
    weight = weight_matrix(layer)
    n, k = weight.shape
    generator = torch.Generator().manual_seed(0)
    rows, columns = _extents(pattern)
    chosen: Tensor = torch.rand((-(-n // rows), -(-k // columns)), generator=generator) < density
    mask = chosen.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[:n, :k]
    made = nn.Linear(k, n, layer._parameters.get("bias") is not None, device="meta")
    values = torch.randn((n, k), generator=generator) * mask
    made.weight = nn.Parameter(values.to(weight.dtype), requires_grad=False)
    if made.bias is not None:
        made.bias = nn.Parameter(torch.zeros(n, dtype=weight.dtype), requires_grad=False)
    return made


def _extents(pattern: str) -> tuple[int, int]:
    """Rows and columns of a block; single weights for other patterns, N:M among them, which costs what they cost."""
    first, found, second = pattern.partition("x")
    return (int(first), int(second)) if found else (1, 1)

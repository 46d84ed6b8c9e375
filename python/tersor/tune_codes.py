"""Is a layer of codes faster than the float one here? Measured as in tersor.tune, for a code book's bits and groups."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from tersor.benchmark import torch_threads
from tersor.nn.codebook_linear import CodebookLinear
from tersor.nn.float_linear import weight_matrix
from tersor.tune import BUCKETS, Tuner, Verdict, bucket_of, decide, describe_layer, float_copies, race


class CodesTuner(Tuner):
    """Judges layers that become a CodebookLinear. Arguments and cache are those of Tuner."""

    def judge_codes(
        self, layer: nn.Module, rows: Iterable[int], dtype: torch.dtype, bits: int, group_size: int | None
    ) -> Verdict:
        """Float against codes for an nn.Linear. What a table holds makes no difference: it is a linear one.

        Raises:
            ValueError: the layer can't become a layer of codes.
        """
        buckets = sorted({bucket_of(count) for count in rows or BUCKETS})
        name = f"{describe_layer(layer, dtype)}, {bits} bits in groups of {group_size or 'a row'}"
        missing = [bucket for bucket in buckets if self._cache.get(name, bucket) is None]
        if missing:
            with torch_threads(self.threads), torch.inference_mode():
                self._measure_codes(layer, name, dtype, bits, group_size, missing)
            self._cache.save()
        times = {bucket: self._known(name, bucket) for bucket in buckets}
        floats, codes = ({bucket: pair[side] for bucket, pair in times.items()} for side in (0, 1))
        return decide(floats, codes, kind=f"{bits}-bit codes")

    def _measure_codes(
        self,
        layer: nn.Module,
        name: str,
        dtype: torch.dtype,
        bits: int,
        group_size: int | None,
        buckets: Sequence[int],
    ) -> None:
        floats = float_copies(layer, dtype)
        packed = CodebookLinear.from_float(floats[0], bits=bits, group_size=group_size)
        packs = [packed, *(copy.deepcopy(packed) for _ in floats[1:])]
        width = weight_matrix(layer).shape[1]
        for bucket in buckets:
            if self._progress is not None:
                self._progress(f"{name} at {bucket} rows")
            x = torch.randn((bucket, width), generator=torch.Generator().manual_seed(0)).to(dtype)
            times, calm = race(floats, packs, x)
            self._cache.put(name, bucket, times, remember=calm)
            self.measured += 1

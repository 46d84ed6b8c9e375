"""A weight as codes into a small table of integers, with a scale per row or per group of a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LIMIT = 127
"""Table entries lie in [-LIMIT, LIMIT], so that kernels multiply int8 values and sums are exact."""

_FLOAT32 = torch.finfo(torch.float32)


@dataclass(frozen=True)
class Codes:
    """``weight[o, i] = table[codes[o, i]] * scale[o, i // group_size]``.

    Attributes:
        codes: uint8 ``[out, in]``, below ``2 ** bits``.
        table: int8, ascending, with ``2 ** bits`` entries: ``[entries]`` for all rows, ``[out, entries]``, or
            ``[out, groups, entries]``. Entries may repeat; 0 is one of them, so weights of 0 stay 0.
        scale: float32 ``[out, groups]``, positive normal numbers.
        bits: of a code, 2 to 8.
        group_size: weights of a row under one scale, ``in`` where there are no groups; the last group may be shorter.
    """

    codes: Tensor
    table: Tensor
    scale: Tensor
    bits: int
    group_size: int

    def check(self) -> None:
        """Check every rule above.

        Raises:
            ValueError: one is broken; the message says which.
        """
        _require(self.codes.dim() == 2 and self.codes.dtype == torch.uint8, "codes: expected uint8 [out, in]")
        out, columns = self.codes.shape
        _require(2 <= self.bits <= 8, f"bits: expected 2 to 8, got {self.bits}")
        _require(1 <= self.group_size <= max(columns, 1), f"group_size: expected 1 to {columns}, got {self.group_size}")
        groups, entries = group_count(columns, self.group_size), 2**self.bits
        shapes = [(entries,), (out, entries), (out, groups, entries)]
        _require(
            self.table.dtype == torch.int8 and tuple(self.table.shape) in shapes,
            f"table: expected int8 of one of the shapes {shapes}, got {self.table.dtype} {tuple(self.table.shape)}",
        )
        _require(
            self.scale.dtype == torch.float32 and tuple(self.scale.shape) == (out, groups),
            f"scale: expected float32 {(out, groups)}, got {self.scale.dtype} {tuple(self.scale.shape)}",
        )
        _require(not self.codes.numel() or int(self.codes.max()) < entries, f"codes: expected values below {entries}")
        wide = self.table.to(torch.int16)
        _require(bool((wide.abs() <= LIMIT).all()), f"table: expected entries in [-{LIMIT}, {LIMIT}]")
        _require(bool((wide.diff(dim=-1) >= 0).all()), "table: expected ascending entries")
        _require(bool((wide == 0).any(-1).all()), "table: expected 0 among the entries")
        fine = (self.scale >= _FLOAT32.tiny) & torch.isfinite(self.scale)
        _require(bool(fine.all()), "scale: expected positive normal numbers")


def _require(fine: bool, message: str) -> None:
    if not fine:
        raise ValueError(message)


def group_count(columns: int, group_size: int) -> int:
    """Groups of a row of ``columns`` weights, at least 1."""
    return max(-(-columns // max(group_size, 1)), 1)


def check_weight(weight: Tensor) -> Tensor:
    """The weight as detached float32.

    Raises:
        ValueError: it is not a 2-d floating-point tensor, or holds NaN or infinity.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"expected a 2-d floating-point weight, got {weight.dtype} {list(weight.shape)}")
    wide = weight.detach().to(torch.float32)
    if not bool(torch.isfinite(wide).all()):
        raise ValueError("the weight holds NaN or infinity")
    return wide


def expand_scale(scale: Tensor, columns: int, group_size: int) -> Tensor:
    """A scale ``[out, groups]`` for every weight, ``[out, columns]``."""
    return scale.repeat_interleave(group_size, dim=1)[:, :columns] if scale.shape[1] > 1 else scale.expand(-1, columns)


def values(codes: Tensor, table: Tensor, group_size: int) -> Tensor:
    """The table entry of every code ``[out, in]``, in the dtype of the table."""
    index = codes.to(torch.int64)
    if table.dim() == 1:
        return table[index]
    if table.dim() == 2:
        return table.gather(1, index)
    groups, columns = table.shape[1], codes.shape[1]
    padded = torch.nn.functional.pad(index, (0, groups * group_size - columns))
    return table.gather(2, padded.reshape(len(codes), groups, group_size)).flatten(1)[:, :columns]


def decode(codes: Codes) -> Tensor:
    """The weight that the codes stand for, float32 ``[out, in]``."""
    entry = values(codes.codes, codes.table, codes.group_size).to(torch.float32)
    return entry * expand_scale(codes.scale, codes.codes.shape[1], codes.group_size)


def nearest(x: Tensor, table: Tensor) -> Tensor:
    """The code of the entry nearest to each value, the lower one of two that are as near, uint8.

    Args:
        x: float32 in units of the scale, ``[out, n]``, or ``[out, groups, n]`` for a table with that many dimensions.
        table: as in :class:`Codes`.
    """
    if table.dim() == 1 and _consecutive(table):
        return _nearest_integer(x, table)
    wide = table.to(torch.float32)
    middle = ((wide[..., 1:] + wide[..., :-1]) / 2).contiguous()
    # Behind an entry come those equal to it; the first of them stands for all.
    code = torch.bucketize(x, middle) if table.dim() == 1 else torch.searchsorted(middle, x.contiguous())
    first = torch.searchsorted(wide.contiguous(), wide.contiguous())
    code = first[code] if table.dim() == 1 else first.gather(-1, code)
    return code.to(torch.uint8)


def _consecutive(table: Tensor) -> bool:
    """Whether entries are consecutive integers; the first one may stand there twice."""
    steps = table.to(torch.int64).diff()
    return len(steps) > 0 and bool((steps[1:] == 1).all()) and int(steps[0]) in (0, 1)


def _nearest_integer(x: Tensor, table: Tensor) -> Tensor:
    up = x.ceil()  # where the distance to it decides, it is exact
    whole = up.sub_(((up - x) >= 0.5).to(x.dtype)).clamp_(float(table[0]), float(table[-1]))
    code = whole.add_(len(table) - 1 - float(table[-1]))
    return code.mul_(code > 1).to(torch.uint8) if bool(table[0] == table[1]) else code.to(torch.uint8)


def encode(weight: Tensor, table: Tensor, scale: Tensor, bits: int, group_size: int) -> Codes:
    """Every weight ``[out, in]`` (float32) to the nearest entry under the given table and scales."""
    columns = weight.shape[1]
    units = weight / expand_scale(scale, columns, group_size)
    if table.dim() < 3:
        return Codes(nearest(units, table), table, scale, bits, group_size)
    groups = scale.shape[1]
    padded = torch.nn.functional.pad(units, (0, groups * group_size - columns))
    code = nearest(padded.reshape(len(weight), groups, group_size), table).flatten(1)[:, :columns].contiguous()
    return Codes(code, table, scale, bits, group_size)

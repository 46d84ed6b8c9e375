"""What a code book is, and the list of all of them. A new one is one file here and one import line in the package."""

from __future__ import annotations

import abc
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from tersor.quantize.codebooks.codes import Codes, check_weight, encode
from tersor.quantize.codebooks.scales import fit_scale


class CodeBook(abc.ABC):
    """Chooses a table of ``2 ** bits`` integers for a weight, and scales.

    Attributes:
        name: its name in the registry.
        most_bits: the widest code it can do; the narrowest is 2.
        ratios: the scales to try, as parts of the one under which the largest weight meets the largest entry.
    """

    name: ClassVar[str] = ""
    most_bits: ClassVar[int] = 8
    ratios: ClassVar[tuple[float, ...]] = tuple(0.4 + 0.05 * step for step in range(13))  # 0.4 to 1

    def fit(self, weight: Tensor, bits: int, group_size: int | None = None, importance: Tensor | None = None) -> Codes:
        """The codes of a weight, with table and scales that make its weighted squared error small.

        Args:
            weight: float ``[out, in]``.
            bits: of a code.
            group_size: weights of a row under one scale; None: the whole row.
            importance: what the squared error of a weight counts, ``[in]`` (such as the mean square of the inputs)
                or ``[out, in]``; None: all the same.

        Raises:
            ValueError: a weight that is not 2-d floating point or not finite, bits or group_size out of range, or
                an importance of another shape.
        """
        wide = check_weight(weight)
        size = self._group_size(wide, bits, group_size)
        table = self.table(wide, bits, size, importance)
        scale = fit_scale(wide, table, size, self.ratios, importance)
        return encode(wide, table, scale, bits, size)

    @abc.abstractmethod
    def table(self, weight: Tensor, bits: int, group_size: int, importance: Tensor | None) -> Tensor:
        """The table for a weight, as in Codes; the weight is float32 and finite."""

    def _group_size(self, weight: Tensor, bits: int, group_size: int | None) -> int:
        if not 2 <= bits <= self.most_bits:
            raise ValueError(f"code book {self.name!r}: expected 2 to {self.most_bits} bits, got {bits}")
        columns = max(weight.shape[1], 1)
        if group_size is not None and group_size < 1:
            raise ValueError(f"group_size: expected a positive number, got {group_size}")
        return columns if group_size is None else min(group_size, columns)


def int8_table(entries: list[float] | Tensor, bits: int) -> Tensor:
    """Values in [-127, 127] rounded to an ascending int8 table, its last entry repeated up to ``2 ** bits``."""
    rounded = torch.as_tensor(entries, dtype=torch.float32).round().to(torch.int8).sort().values
    return torch.cat([rounded, rounded[-1:].expand(2**bits - len(rounded))])


CODEBOOKS: dict[str, type[CodeBook]] = {}
"""Every known code book by its name."""

CodeBookT = TypeVar("CodeBookT", bound=type[CodeBook])


def register_codebook(cls: CodeBookT) -> CodeBookT:
    """Class decorator that makes a code book known by its name.

    Raises:
        ValueError: no name, or it belongs to another class.
    """
    if not cls.name:
        raise ValueError(f"{cls.__qualname__} has no name")
    owner = CODEBOOKS.setdefault(cls.name, cls)
    if owner is not cls:
        raise ValueError(f"code book {cls.name!r} belongs to {owner.__module__}.{owner.__qualname__} already")
    return cls


def make_codebook(codebook: str | CodeBook) -> CodeBook:
    """A code book by its name with its default settings, or as it is.

    Raises:
        ValueError: an unknown name; the message lists what exists.
    """
    if isinstance(codebook, CodeBook):
        return codebook
    if codebook not in CODEBOOKS:
        raise ValueError(f"unknown code book {codebook!r}; known: {', '.join(sorted(CODEBOOKS))}")
    return CODEBOOKS[codebook]()

"""The canonical form of a sparse weight: one bit for every block of it, and the values of the blocks that hold any.

A pattern says what a block is: "1x4" means 1 output x 4 inputs; "unstructured" and N:M ("2:4") mean single weights. The
grid of blocks is read row by row. In files, state dicts and pickles a layer holds

    weight_mask    uint8 [ceil(blocks / 8)], block i is bit i % 8 of byte i / 8
    values         [kept, rows * columns of a block], the blocks whose bit is 1; 0 beyond the edges of the weight
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

MAX_BLOCK = 64  # weights; bounds what a small mask can stand for
UNSTRUCTURED = "unstructured"
_KNOWN = f"expected 'unstructured', blocks such as '1x4' of at most {MAX_BLOCK} weights, or N:M such as '2:4'"


@dataclass(frozen=True)
class Grid:
    """What a pattern means for an [n, k] weight.

    Attributes:
        n, k: the weight's extents.
        rows, columns: the extents of a block.
        most, group: at most `most` of every `group` neighbouring inputs are not 0 (N:M); group 0: no such rule.
    """

    n: int
    k: int
    rows: int
    columns: int
    most: int = 0
    group: int = 0

    @property
    def area(self) -> int:
        """Weights of a block."""
        return self.rows * self.columns

    @property
    def blocks(self) -> int:
        """How many blocks there are, those cut by an edge included."""
        return -(-self.n // self.rows) * -(-self.k // self.columns)

    @property
    def mask_bytes(self) -> int:
        """Bytes of the mask."""
        return -(-self.blocks // 8)

    def tiles(self, weight: Tensor) -> Tensor:
        """The weight [n, k] as [blocks, area]."""
        padded = functional.pad(weight, (0, -self.k % self.columns, 0, -self.n % self.rows))
        down, across = padded.shape[0] // self.rows, padded.shape[1] // self.columns
        return padded.reshape(down, self.rows, across, self.columns).transpose(1, 2).reshape(-1, self.area)

    def untile(self, tiles: Tensor) -> Tensor:
        """The inverse of `tiles`."""
        down, across = -(-self.n // self.rows), -(-self.k // self.columns)
        padded = tiles.reshape(down, across, self.rows, self.columns).transpose(1, 2)
        return padded.reshape(down * self.rows, across * self.columns)[: self.n, : self.k].contiguous()

    def check(self, weight: Tensor) -> None:
        """Raises ValueError unless the weight [n, k] keeps to N of M."""
        if not self.group:
            return
        tail = self.k % self.group
        used = functional.pad((weight != 0).to(torch.int16), (0, -self.k % self.group))
        counts = used.reshape(self.n, -1, self.group).sum(2)  # [n, groups]
        allowed = torch.full((counts.shape[1],), self.most)
        if tail:
            allowed[-1] = tail - tail * (self.group - self.most) // self.group
        bad = torch.nonzero(counts > allowed)
        if bad.numel():
            raise ValueError(f"row {int(bad[0, 0])} of the weight breaks the pattern {self.most}:{self.group}")


def grid_of(pattern: object, n: int, k: int) -> Grid:
    """What `pattern` means for an [n, k] weight; raises ValueError for anything that is no pattern."""
    text = pattern if isinstance(pattern, str) else ""
    if text == UNSTRUCTURED:
        return Grid(n, k, 1, 1)
    if found := re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text):
        grid = Grid(n, k, int(found[1]), int(found[2]))
        if grid.area <= MAX_BLOCK:
            return grid
    if (found := re.fullmatch(r"([1-9]\d?):([1-9]\d?)", text)) and int(found[1]) < int(found[2]):
        return Grid(n, k, 1, 1, int(found[1]), int(found[2]))
    raise ValueError(f"pattern: {_KNOWN}, got {pattern!r}")


def find_pattern(weight: Tensor) -> str:
    """ "1x4" where that describes the zeros of a weight [n, k] in fewer bytes of int8, else "unstructured"."""
    n, k = weight.shape
    sizes = {}
    for pattern in ("1x4", UNSTRUCTURED):
        grid = grid_of(pattern, n, k)
        kept = int((grid.tiles(weight) != 0).any(1).sum())
        sizes[pattern] = grid.mask_bytes + kept * grid.area
    return min(sizes, key=lambda pattern: sizes[pattern])


def compact(weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """weight_mask and values of a weight [n, k]. The inverse of `expand`; raises ValueError where N:M is broken."""
    grid.check(weight)
    tiles = grid.tiles(weight)
    kept = (tiles != 0).any(1)  # [blocks]
    bits = functional.pad(kept, (0, -len(kept) % 8)).reshape(-1, 8).to(torch.uint8)
    return (bits << _PLACES).sum(1, dtype=torch.uint8), tiles[kept]


def expand(mask: Tensor, values: Tensor, grid: Grid) -> Tensor:
    """The weight [n, k] that a mask uint8 [grid.mask_bytes] and values [kept, grid.area] stand for.

    Raises:
        ValueError: the mask names another number of blocks than there are values, or one beyond the grid; a block
            holds only 0, or something beyond the edge of the weight; N:M is broken.
    """
    kept = ((mask[:, None] >> _PLACES) & 1).reshape(-1).bool()
    if bool(kept[grid.blocks :].any()):
        raise ValueError(f"weight_mask names blocks beyond the {grid.blocks} that there are")
    kept = kept[: grid.blocks]
    if (count := int(kept.sum())) != len(values):
        raise ValueError(f"weight_mask names {count} blocks and there are values of {len(values)}")
    if not bool((values != 0).any(1).all()):
        raise ValueError("the values of a block are all 0; such blocks are left out")
    tiles = values.new_zeros((grid.blocks, grid.area))
    tiles[kept] = values
    weight = grid.untile(tiles)
    if int((weight != 0).sum()) != int((values != 0).sum()):
        raise ValueError("a block at the edge of the weight holds values beyond it")
    grid.check(weight)
    return weight


def count_kept(weight: Tensor, grid: Grid) -> int:
    """How many blocks of a weight [n, k] hold a value that is not 0."""
    return int((grid.tiles(weight) != 0).any(1).sum())


_PLACES = torch.arange(8, dtype=torch.uint8)

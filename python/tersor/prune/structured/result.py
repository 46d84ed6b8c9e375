"""What was removed from a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rich.text import Text

from tersor import text


@dataclasses.dataclass(frozen=True)
class GroupRow:
    """One group of coupled layers.

    Attributes:
        layers: the layers that make its units.
        kind: channels, neurons, heads, units (of recurrent layers) or width.
        before, after: the number of units.
        reason: why it stays whole although it was chosen; None where it does not.
    """

    layers: tuple[str, ...]
    kind: str
    before: int
    after: int
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class ChannelResult:
    """What :func:`tersor.prune_channels` did.

    Attributes:
        groups: what was chosen.
        kept: why other layers keep all of their outputs, by name.
        ratio: the part that was asked for, or found for the target.
        parameters_before, flops_before, parameters_after, flops_after: of the model; operations of one run of the
            example input in products of matrices, convolutions, attention and recurrent layers.
    """

    groups: tuple[GroupRow, ...]
    kept: Mapping[str, str]
    ratio: float
    parameters_before: int
    flops_before: int
    parameters_after: int
    flops_after: int

    def table(self, width: int = 100, color: bool = False) -> str:
        """The groups as text."""
        table = text.plain_table("made by", "kind", "before", "after", "")
        for row in self.groups:
            more = f" and {len(row.layers) - 1} more" if len(row.layers) > 1 else ""
            table.add_row(Text(row.layers[0] + more), row.kind, str(row.before), str(row.after), Text(row.reason or ""))
        for name, reason in self.kept.items():
            table.add_row(Text(name), "", "", "", Text(reason))
        return text.render(table, self.summary(), width=width, color=color)

    def summary(self) -> str:
        """One sentence."""
        return (
            f"{self.parameters_before:,} -> {self.parameters_after:,} parameters, "
            f"{self.flops_before / 1e6:,.1f} -> {self.flops_after / 1e6:,.1f} million operations."
        )

    def __str__(self) -> str:
        return self.table()

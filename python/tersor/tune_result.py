"""What tuning a model found out, as a table or JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tersor import text

if TYPE_CHECKING:
    from tersor.tune import Verdict

SCHEMA = "tersor.tune-result/1"


@dataclasses.dataclass(frozen=True)
class TunedLayer:
    """One layer of a tuned model.

    Attributes:
        names: its qualified names.
        layer: shape (out x in), bias and dtype.
        rows: numbers of rows it was given; empty where the model was not run.
        verdict: float against int8; None where it can't be swapped or was never called.
        reason: the verdict in words, or why there is none.
    """

    names: tuple[str, ...]
    layer: str
    rows: tuple[int, ...]
    verdict: Verdict | None
    reason: str


@dataclasses.dataclass(frozen=True)
class TuneResult:
    """What :func:`tune` found out.

    Attributes:
        layers: every linear layer in the model's order.
        host: what the measurements belong to.
        measured: how many measurements were made; the others came from the cache.
        seconds: how long it took.
        blocks: every encoder block; its verdict is about float against one call.
    """

    layers: tuple[TunedLayer, ...]
    host: dict[str, str]
    measured: int
    seconds: float
    blocks: tuple[TunedLayer, ...] = ()

    def table(self, width: int = 100, color: bool = False) -> str:
        """One line per kind of layer, as text of at most ``width`` columns."""
        table = text.plain_table("layer", "n", "rows", "float us", "int8 us", "speed", "")
        judged = [layer for layer in (*self.layers, *self.blocks) if layer.verdict is not None]
        for found in _kinds(judged):
            _add_rows(table, found)
        every = (*self.layers, *self.blocks)
        others = [f"{layer.names[0] or '(model)'}: {layer.reason}" for layer in every if layer.verdict is None]
        faster = sum(1 for layer in self.layers if layer.verdict is not None and layer.verdict.faster)
        line = f"int8 is faster for {faster} of {len(self.layers)} linear layers."
        if self.blocks:
            whole = sum(1 for block in self.blocks if block.verdict is not None and block.verdict.faster)
            line += f" One call is faster for {whole} of {len(self.blocks)} encoder blocks."
        where = ", ".join(f"{key} {self.host[key]}" for key in ("isa", "threads", "tersor", "torch"))
        how = f"{self.measured} measurements in {self.seconds:.1f} s; {where}; {self.host['cpu']}."
        return text.render(table, *others, line, how, width=width, color=color)

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


def _kinds(layers: Iterable[TunedLayer]) -> list[list[TunedLayer]]:
    kinds: dict[tuple[str, str], list[TunedLayer]] = {}
    for layer in layers:
        kinds.setdefault((layer.layer, repr(layer.verdict)), []).append(layer)
    return list(kinds.values())


def _add_rows(table: Table, layers: Sequence[TunedLayer]) -> None:
    first, count = layers[0], str(len(layers))
    verdict = first.verdict
    assert verdict is not None
    for index, (rows, before) in enumerate(verdict.float_us.items()):
        after = verdict.tersor_us[rows]
        head = (first.layer, count) if index == 0 else ("", "")
        mark = "" if before / after >= 1 + verdict.margin else "float is kept"
        times = (text.microseconds(before), text.microseconds(after), f"{before / after:.2f}x")
        table.add_row(*head, str(rows), *times, mark)

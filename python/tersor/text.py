"""Tables as plain text for a terminal of a given width, and text files written in one step."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text


def render(*items: RenderableType, width: int = 100, color: bool = False) -> str:
    """What rich would print, as text that ends in a line break; strings are taken as they are, without markup.

    Args:
        width: columns to fit into.
        color: with ANSI colours.
    """
    out = StringIO()
    console = Console(
        file=out, width=width, force_terminal=color, color_system="standard" if color else None, highlight=False
    )
    for item in items:
        console.print(Text(item) if isinstance(item, str) else item)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def plain_table(*columns: str, right: int = 1) -> Table:
    """A table with a line under its head; the columns from number ``right`` on are aligned to the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for index, title in enumerate(columns):
        if index < right:
            table.add_column(title, overflow="fold")
        else:
            table.add_column(title, justify="right", overflow="fold")
    return table


def microseconds(value: float) -> str:
    """``9.5``, ``57``, ``1234``."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def write(path: str | Path, content: str) -> None:
    """Write a UTF-8 file so that its name points to the old content or the whole new one. Raises OSError."""
    from tersor.checkpoint.atomic import atomic_file, write_at

    with atomic_file(Path(path)) as file:
        write_at(file, 0, memoryview(content.encode()))

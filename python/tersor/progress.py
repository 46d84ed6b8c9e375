"""Progress bars on standard error: shown on a terminal or in a notebook, silent elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

Item = TypeVar("Item")


def track(items: Iterable[Item], text: str, *, total: int | None = None, shown: bool = True) -> Iterator[Item]:
    """Yield ``items`` under a progress bar.

    Args:
        items: anything iterable.
        text: what is going on.
        total: the number of items; taken from ``len(items)`` where it is None and the items have a length.
        shown: False for no bar.
    """
    console = Console(stderr=True)
    if not shown or not (console.is_terminal or console.is_jupyter):
        yield from items
        return
    with Progress(console=console, transient=True) as progress:
        yield from progress.track(items, total=total, description=text)


@contextmanager
def working(text: str, *, shown: bool = True) -> Iterator[None]:
    """Show that something is going on, while the block runs, where its length is not known."""
    console = Console(stderr=True)
    if not shown or not (console.is_terminal or console.is_jupyter):
        yield
        return
    with console.status(text):
        yield

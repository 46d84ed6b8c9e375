"""The states of all random number generators that training draws from."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch


def capture(loader: Iterable[Any]) -> dict[str, Any]:
    """The states of torch's, Python's and NumPy's generators, and of a loader's own."""
    kind, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.array(keys)), *rest],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    for name, generator in _own(loader).items():
        state[name] = generator.get_state()
    return state


def put_back(state: Mapping[str, Any], loader: Iterable[Any]) -> None:
    """Set the generators to the states of :func:`capture`."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy(), *rest))
    if "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
    for name, generator in _own(loader).items():
        if name in state:
            generator.set_state(state[name])


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Random numbers from a seed while the block runs, and as before after it; None leaves them alone."""
    if seed is None:
        yield
        return
    before = capture(())
    try:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        put_back(before, ())


def _own(loader: Iterable[Any]) -> dict[str, torch.Generator]:
    owners = {"loader": loader, "sampler": getattr(loader, "sampler", None)}
    found = {name: getattr(owner, "generator", None) for name, owner in owners.items()}
    return {name: generator for name, generator in found.items() if isinstance(generator, torch.Generator)}

"""Calibration data shared out to two processes brings what one process sees in all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from divided_worker import CRITERIA, work
from torch import distributed
from two_processes import run_two

from tersor import processes
from tersor.quantize import RowSample
from tersor.quantize.observers import OBSERVERS, make_observer
from tersor.training import read_state

gloo = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this torch has no Gloo"
)


@gloo
def test_two_processes_see_what_one_sees(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    expected = work(tmp_path / "one")
    printed = run_two(Path(__file__).parent / "divided_worker.py", tmp_path)
    assert "rank 1: 0, calibration batch 1: the input holds NaN or infinity" in printed
    assert "rank 0: process 1 failed. SwapError: 0, calibration batch 1" in printed
    first, second = (read_state(tmp_path / f"result{rank}") for rank in range(2))
    assert first.keys() == second.keys() == expected.keys()
    for name, wanted in expected.items():
        if not name.startswith("gram "):
            compare(first[name], second[name], exact=True)
        compare(first[name], wanted, exact=not name.startswith(("moments", "gram", "prune")))


def compare(found: Any, wanted: Any, *, exact: bool) -> None:
    """Equal, or equal but for the order of float32 additions: 1e-5 of the largest entry."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            compare(found[key], wanted[key], exact=exact or key in ("rows", "low", "high"))
    elif exact or wanted.dtype in (torch.bool, torch.int64):
        assert torch.equal(found, wanted)
    else:
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", sorted(OBSERVERS))
def test_a_merged_observer_is_one_that_saw_everything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 1 + index % 3, 8) * 10.0 ** (index - 3) for index in range(6)] + [torch.zeros(1, 4, 8)]
    whole, *parts = [make_observer(name, "token") for _ in range(4)]
    monkeypatch.setattr(processes, "size", lambda: 3)
    for index, x in enumerate(inputs):
        with processes.running(index):
            whole.add(x)
            parts[index % 3].add(x)
    monkeypatch.undo()
    merged = make_observer(name, "token")
    merged.merge(parts)
    assert merged.units == whole.units == 4
    for key, value in vars(whole).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(merged, key), value), key
    assert torch.equal(torch.stack(merged.range()), torch.stack(whole.range()))


def test_batches_that_do_not_count() -> None:
    observer = make_observer("minmax")
    with processes.running(None):
        observer.add(torch.ones(3))
    assert observer.units == 0
    observer.add(torch.ones(3))
    assert observer.units == 1


def test_a_sample_of_rows_does_not_depend_on_who_draws_it() -> None:
    rows = [torch.randn(50, 3) for _ in range(6)]
    whole, *parts = [RowSample(3, torch.float32) for _ in range(3)]
    for index, x in enumerate(rows):
        with processes.running(index):
            whole.add(x)
            parts[index % 2].add(x)
    merged = RowSample(3, torch.float32)
    merged.merge([part.state() for part in parts])
    assert torch.equal(merged.rows, whole.rows)


def test_one_process_runs_all() -> None:
    seen: list[Any] = []
    assert processes.share("abc", lambda index, batch: seen.append((index, batch, processes.batch_number()))) == 3
    assert seen == [(0, "a", 0), (1, "b", 1), (2, "c", 2)]
    assert processes.gather(1) == [1]
    assert set(CRITERIA) >= {"wanda", "sparsegpt"}

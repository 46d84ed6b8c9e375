"""The dry run of tools/gpu_day.py, and what it does when a stage fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "gpu_day.py"


def day(out: Path, *options: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, str(TOOL), "--out", str(out), "--emulate", *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.returncode, json.loads((out / "gpu_day.json").read_text())


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")
def test_a_dry_run(tmp_path: Path) -> None:
    code, found = day(tmp_path, "--stages", "probe", "build", "ptx", "ceilings", "bench", "stamp")
    assert code == 0, found["stages"]
    assert found["emulated"]
    results = found["results"]
    assert results["ptx"]["bit_exact"]
    assert "MmaU8S8" in results["ptx"]["wrappers"]
    assert results["stamp"]["stamp"] == "none"
    rows = results["bench"]["rows"]
    columns = {"op", "dtype", "shape", "sparsity", "rank", "kernel", "us", "bytes", "operations", "floor", "fraction"}
    assert rows
    for row in rows:
        assert columns | {"rivals", "error"} <= row.keys()
        assert row["us"]["p10"] <= row["us"]["p50"] <= row["us"]["p90"]
    assert not (tmp_path / "hardware_stamp.json").exists()


def test_every_wrapper_is_probed() -> None:
    """A new wrapper in ptx.cuh needs a probe: its name stands in ptx_probe.cu."""
    root = TOOL.parent.parent
    source = (root / "csrc" / "kernels" / "cuda" / "ptx.cuh").read_text()
    emulated = source[source.index("#ifdef TERSOR_EMULATE") : source.index("#else")]
    names = [line.split("(")[0].split()[-1] for line in emulated.splitlines() if line.startswith("inline ")]
    assert len(names) > 10
    probe = (root / "tests" / "cuda" / "ptx_probe.cu").read_text()
    helpers = {"MultiprocessorCount"}
    assert [name for name in names if name not in helpers and f"ptx::{name}" not in probe and name not in probe] == []


def test_a_failing_stage_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    folder = tmp_path / "ptx_emulated"
    folder.mkdir()  # where the stage writes its program
    code, found = day(tmp_path, "--stages", "ptx", "stamp")
    assert code == 1
    assert [stage["rc"] == 0 for stage in found["stages"]] == [False, True]
    assert found["stages"][0]["tail"]

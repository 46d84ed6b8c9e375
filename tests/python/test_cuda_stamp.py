"""What the documents say about hardware agrees with the stamp of the last GPU day."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
STALE = "The stamp is stale."


def test_the_stamp_is_that_of_the_present_instructions_or_said_to_be_stale() -> None:
    stamp = json.loads((ROOT / "tests" / "cuda" / "hardware_stamp.json").read_text())
    now = hashlib.sha256((ROOT / "csrc" / "kernels" / "cuda" / "ptx.cuh").read_bytes()).hexdigest()
    document = (ROOT / "docs" / "cuda.md").read_text()
    assert (STALE in document) == (stamp["ptx_sha256"] != now), "run tools/gpu_day.py, or correct docs/cuda.md"
    assert stamp["device"] in document

"""docs/format.md says what the code does: its example is a real header, its lists are the code's lists."""

from __future__ import annotations

import json
import re
from pathlib import Path

from torch import nn

import tersor
from tersor.checkpoint import container, manifest, rebuild
from tersor.nn import REGISTRY, Int8Linear

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text()
WORDS = " ".join(DOCUMENT.split())  # without line breaks


def test_example_is_a_real_header(tmp_path: Path) -> None:
    tersor.save(nn.Sequential(Int8Linear.from_float(nn.Linear(4, 2)), nn.LayerNorm(2)), tmp_path / "x.tersor")
    data = (tmp_path / "x.tersor").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    (example,) = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    documented = json.loads(example)
    documented["__metadata__"]["tersor.version"] = tersor.__version__
    assert documented == header
    assert list(documented) == list(header)


def test_lists() -> None:
    widths = {width: [d for d, w in container.ITEM_BYTES.items() if w == width] for width in (1, 2, 4, 8)}
    listed = ", ".join(f"{' '.join(names)} ({width})" for width, names in widths.items()).replace("(1)", "(1 byte)")
    assert f"one of {listed}." in WORDS
    kinds = DOCUMENT.split("| kind | replaces | tensors |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", kinds, re.MULTILINE)) == REGISTRY.keys()
    for key in rebuild._REFUSED_KEYS:
        assert f"`{key}`" in WORDS
    assert f"at most {container.MAX_HEADER_BYTES} " in WORDS
    assert f"version {manifest.FORMAT_VERSION}\n" in DOCUMENT
    assert f"{container.MAX_DIMS} integers" in WORDS
    assert f"{manifest.MAX_MANIFEST_DEPTH} levels deep" in WORDS

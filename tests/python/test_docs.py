"""The documents tell the same story as the tree: paths exist, Python examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/**/*.md")])
PATH = re.compile(r"`((?:csrc|python|tests|bench|docs|cmake|\.ci)/[\w./-]*\w/?)`")
EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_paths_exist(document: Path) -> None:
    missing = [name for name in PATH.findall(document.read_text()) if not (ROOT / name).exists()]
    assert not missing, f"{document.name} names paths that are not there: {missing}"


def examples() -> list[tuple[str, str]]:
    return [
        (f"{document.name}-{number}", code)
        for document in DOCUMENTS
        for number, code in enumerate(EXAMPLE.findall(document.read_text()))
    ]


def test_readme_has_an_example() -> None:
    assert any(name.startswith("README.md") for name, _ in examples())


@pytest.mark.parametrize(("name", "code"), examples(), ids=[name for name, _ in examples()])
def test_examples_run(name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, name, "exec"), {"__name__": "example"})

"""`import tersor` is lazy and exact: every public name resolves, unknown ones say what exists."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import tersor


def test_every_public_name_resolves() -> None:
    for name in tersor.__all__:
        value = getattr(tersor, name)
        assert isinstance(value, ModuleType) == (name in tersor._MODULES), name
    assert set(tersor.__all__) == tersor._MODULES | tersor._HOMES.keys()
    assert set(tersor.__all__) <= set(dir(tersor))


def test_type_checkers_see_the_same_names() -> None:
    assert tersor.__file__ is not None
    tree = ast.parse(Path(tersor.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    homes = {name: f"tersor.{home}" for name, home in tersor._HOMES.items()}
    assert seen == homes | dict.fromkeys(tersor._MODULES, "tersor")


def test_a_function_stays_in_front_of_the_module_of_its_name() -> None:
    code = """
import importlib, tersor
module = importlib.import_module("tersor.swap")
assert tersor.swap is module.swap and callable(tersor.swap)
import tersor.swap
assert callable(tersor.swap)
from tersor import swap
assert swap is module.swap
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_lists_what_exists() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'swop'; it has .*compress.*swap"):
        tersor.swop  # noqa: B018


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert tersor.__version__ == version("tersor")


def test_import_is_cheap() -> None:
    code = "import sys, tersor; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'tersor._C')))"
    subprocess.run([sys.executable, "-c", code], check=True)

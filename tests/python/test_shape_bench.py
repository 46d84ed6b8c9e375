"""`tersor bench`: the int8 layer against torch on a list of shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tersor
from tersor.cli import app
from tersor.shape_bench import SHAPES, bench_shapes


def test_the_command_times_every_contestant() -> None:
    words = ["bench", "--shape", "4x64x32", "--shape", "1x32x64", "--rounds", "2", "--threads", "1", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert [(row["m"], row["n"], row["k"]) for row in data["rows"]] == [(4, 64, 32), (1, 32, 64)]
    assert data["threads"] == 1
    for row in data["rows"]:
        best = min(row["us"]["float"], row["us"].get("torch int8", float("inf")))
        assert row["speedup"] == pytest.approx(best / row["us"]["tersor"])
        assert row["gops"] == pytest.approx(2 * row["m"] * row["n"] * row["k"] / row["us"]["tersor"] / 1e3)
        assert row["kernel"].endswith(tuple(tersor.kernels.available()))
    assert data["geomean"] == pytest.approx((data["rows"][0]["speedup"] * data["rows"][1]["speedup"]) ** 0.5)


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits(width: int) -> None:
    table = bench_shapes([(128, 3072, 768)], rounds=1, progress=False).table(width)
    assert max(map(len, table.splitlines())) <= width
    assert "128 x 3072 x 768" in table


def test_the_shapes_are_those_of_the_bench_folder() -> None:
    text = (Path(__file__).parents[2] / "bench" / "shapes" / "linear.txt").read_text(encoding="utf-8")
    lines = [line.split("#")[0].split() for line in text.splitlines()]
    assert [tuple(map(int, words)) for words in lines if words] == list(SHAPES)

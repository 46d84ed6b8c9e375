"""The report: the table at 100 columns, the JSON schema, the page."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tersor.report import LayerRow, Report, Totals, wording
from tersor.report.table import groups


def row(name: str, **changes: object) -> LayerRow:
    values: dict[str, object] = {
        "name": name,
        "kind": "Linear",
        "action": "swapped",
        "reason": "float 300 us, int8 90 us at 256 rows: swapped",
        "shape": (384, 384),
        "bytes_before": 591360,
        "bytes_after": 152064,
        "rows": (128,),
        "float_us": {64: 100.0, 256: 300.0},
        "tersor_us": {64: 50.0, 256: 90.0},
        "rel_error": 0.01,
    }
    return LayerRow(**{**values, **changes})  # type: ignore[arg-type]


def minilm() -> Report:
    """A report with the names and shapes of MiniLM-L6 and one layer of every other kind."""
    parts = {
        "attention.self.query": (384, 384),
        "attention.self.key": (384, 384),
        "attention.self.value": (384, 384),
        "attention.output.dense": (384, 384),
        "intermediate.dense": (1536, 384),
        "output.dense": (384, 1536),
    }
    rows = [
        row(f"encoder.layer.{index}.{part}", shape=shape, rel_error=0.01 + 0.001 * index)
        for index in range(6)
        for part, shape in parts.items()
    ]
    kept: dict[str, object] = {"action": "kept", "bytes_after": 591360, "rel_error": None}
    unmeasured: dict[str, object] = {"rows": (), "float_us": {}, "tersor_us": {}}
    rows += [
        row("pooler.dense", **kept, float_us={1: 4.0}, tersor_us={1: 5.0}, reason="float 4.0 us, int8 5.0 us"),
        row("head", **kept, **unmeasured, kind="Odd", shape=None, reason="its weight is tied to [embedding].weight"),
        row(
            "extra.0", **unmeasured, forced=True, aliases=("again.0",), rel_error=math.inf, suggestion="Keep it float."
        ),
    ]
    totals = Totals(22713216, 90861056, 58741888, 37, 2, 0.082, 0.99664)
    return Report(tuple(rows), totals, ("a <warning>",), ("a note",), {"threads": "2", "isa": "avx2"})


def test_table_at_100_columns() -> None:
    text = minilm().table()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) < 30
    body = [line.split() for line in lines]
    assert ["encoder.layer.{0..5}"] in body
    query = "attention.self.query 6 384x384 591 kB -> 152 kB 1.50 % 300 -> 90 swapped, 3.3x"
    assert query.split() in body
    assert ["pooler.dense", "1", "384x384", "591", "kB", "-", "4.0", "->", "5.0", "kept,", "0.8x"] in body
    assert ["head", "1", "-", "591", "kB", "-", "-", "kept", "(1)"] in body
    assert "(1) its weight is tied to [embedding].weight" in lines
    assert "(2) also called again.0" in lines
    assert "37 of 39 linear layers swapped." in lines
    assert "Memory of 22,713,216 parameters: 90.9 MB -> 58.7 MB (1.55x smaller)." in lines
    assert "Output against the float model: error 8.20 %, cosine 0.99664." in lines
    assert "Measured: us per call at 1 or 256 rows, threads 2, isa avx2." in lines
    assert "extra.0: error inf. Keep it float." in lines
    assert "Warning: a <warning>" in lines
    assert "Note: a note" in lines
    assert text == str(minilm())
    assert "\x1b[" not in text
    assert "\x1b[" in minilm().table(color=True)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_width_loses_text(width: int) -> None:
    text = minilm().table(width)
    lines = text.splitlines()
    column = lines[0].index(" n ")
    names = "".join(line[:column].strip() for line in lines[2 : lines.index("")])
    for group in groups(minilm()):
        head, tail = wording.split(wording.joined([entry.name for entry in group]))
        assert head in names
        assert tail in names
    assert text.count("swapped, 3.3x") == 6
    if width >= 100:
        assert max(map(len, text.splitlines())) <= width


def test_layers_share_a_line_only_where_they_are_alike() -> None:
    rows = (row("a.0.x"), row("a.1.x"), row("a.2.x", shape=(8, 8)), row("a.3.x", forced=True), row("b.0.x"))
    report = Report(rows, Totals(1, 1, 1, 5, 0))
    assert [[entry.name for entry in group] for group in groups(report)] == [
        ["a.0.x", "a.1.x"],
        ["a.2.x"],
        ["a.3.x"],
        ["b.0.x"],
    ]


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (["a.0.b", "a.1.b", "a.2.b"], "a.{0..2}.b"),
        (["a.0.b", "a.1.b"], "a.{0,1}.b"),
        (["a.3", "a.1", "a.2", "a.7"], "a.{1..3,7}"),
        (["a.0.b.1", "a.0.b.2"], "a.0.b.{1,2}"),
        (["layer1.x"], "layer1.x"),
        (["(model)"], "(model)"),
    ],
)
def test_labels(names: list[str], label: str) -> None:
    assert len({wording.family(name) for name in names}) == 1
    assert wording.joined(names) == label


def test_sizes_and_percentages() -> None:
    assert [wording.size(n) for n in (0, 999, 1000, 151552, 999499, 999999, 2359296, 154_000_000, 10**12)] == [
        "0 B",
        "999 B",
        "1 kB",
        "152 kB",
        "999 kB",
        "1 MB",
        "2.36 MB",
        "154 MB",
        "1000 GB",
    ]
    assert [wording.percent(x) for x in (None, 0.0, 0.01234, 0.999, 1.5, 1e6, math.inf)] == [
        "-",
        "0.00 %",
        "1.23 %",
        "99.90 %",
        "150 %",
        "1.0e+06",
        "inf",
    ]


def test_json_schema_is_stable(tmp_path: Path) -> None:
    report = minilm()
    text = report.to_json(tmp_path / "report.json")
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == text
    data = json.loads(text)
    assert data["schema"] == "tersor.report/1"
    assert list(data) == ["schema", "rows", "totals", "warnings", "notes", "host", "steps"]
    assert list(data["totals"].items()) == [
        ("parameters", 22713216),
        ("bytes_before", 90861056),
        ("bytes_after", 58741888),
        ("swapped", 37),
        ("kept", 2),
        ("output_error", 0.082),
        ("output_cosine", 0.99664),
    ]
    assert data["rows"][0] == {
        "name": "encoder.layer.0.attention.self.query",
        "kind": "Linear",
        "action": "swapped",
        "reason": "float 300 us, int8 90 us at 256 rows: swapped",
        "shape": [384, 384],
        "bytes_before": 591360,
        "bytes_after": 152064,
        "aliases": [],
        "rows": [128],
        "float_us": {"64": 100.0, "256": 300.0},
        "tersor_us": {"64": 50.0, "256": 90.0},
        "rel_error": 0.01,
        "forced": False,
        "suggestion": None,
        "layer": None,
        "pattern": None,
        "sparsity": None,
        "form": None,
        "remark": None,
        "parts": [],
        "layers": 1,
    }
    assert data["rows"][-1]["rel_error"] is None
    assert data["warnings"] == ["a <warning>"]


class Page(HTMLParser):
    """Collects the text of a page and checks that every element is closed and nothing is loaded."""

    void = frozenset(["meta", "link", "img", "br"])

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.rows = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("link", "img", "iframe")
        assert not any(key in ("src", "href") for key, _ in attrs)
        self.rows += tag == "tr"
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_html_is_one_self_contained_page(tmp_path: Path) -> None:
    report = minilm()
    html = report.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert page.rows == 1 + len(report.rows)
    text = "".join(page.text)
    assert "Warning: a <warning>" in text
    assert "url(" not in html
    assert all(entry.name in text for entry in report.rows)
    assert "encoder.layer.5.attention.self.query: 1.50 %" in text
    assert "again.0" in text


def test_worst_come_first() -> None:
    worst = minilm().worst(3)
    assert worst[0].name == "extra.0"
    assert [entry.rel_error for entry in worst[1:]] == [0.015, 0.015]
    assert len(minilm().worst()) == 37
    assert [entry.name for entry in minilm().kept] == ["pooler.dense", "head"]


def test_a_report_without_rows_or_measurements() -> None:
    report = Report((), Totals(0, 0, 0, 0, 0))
    assert "0 of 0 linear layers swapped." in report.table()
    assert json.loads(report.to_json())["rows"] == []
    Page().feed(report.to_html())

"""The steps in the report: a table, pictures, and the page in a browser."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_report import Page, minilm

from tersor.report import Report, StepRow

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


def report() -> Report:
    steps = (
        StepRow("float", 22_713_216, 22_713_216, 90_861_056, 22_300_000_000, metric=0.965),
        StepRow("drop_layers", 19_163_904, 19_163_904, 76_663_000, 15_100_000_000, 112.0, 166.0, None, 0.941, 0.4),
        StepRow("prune", 19_163_904, 12_100_000, 76_663_000, 15_100_000_000, 111.0, 165.0, None, 0.71, 12.0),
        StepRow("distill", 19_163_904, 12_100_000, 76_663_000, 15_100_000_000, 112.5, 166.0, None, 0.958, 800.0),
        StepRow(
            "replace layers", 19_163_904, 12_100_000, 51_200_000, 4_000_000_000, 41.0, 167.0, 1.25, 0.957, 20.0, 5.0
        ),
    )
    return dataclasses.replace(minilm(), steps=steps)


def test_the_table_has_the_steps() -> None:
    text = " ".join(report().table(140).split())
    assert "drop_layers 19,163,904 19,163,904 76.7 MB 15.1 G 113 1.48x not available 0.941 0.4 s" in text
    assert "replace layers 19,163,904 12,100,000 51.2 MB 4 G 41 4.07x 1.25 J 0.957 20 s" in text
    assert "float 22,713,216 22,713,216 90.9 MB 22.3 G 167 - 5 J 0.965 -" in text
    assert "in total 1.19x 1.88x 1.77x 5.58x - 4.07x 4.00x -0.008 832 s" in text
    without = dataclasses.replace(
        report(), steps=tuple(dataclasses.replace(s, joules=None, float_joules=None) for s in report().steps)
    )
    assert "energy" not in without.table(140)  # a column that nothing fills is left out
    assert "not zero" not in minilm().table(140)


def test_the_page_is_whole_and_has_the_pictures() -> None:
    html = report().to_html()
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert page.rows == 1 + len(report().rows) + 1 + len(report().steps) + 1
    assert len(re.findall(r"<svg ", html)) == 3
    assert "not available" in html
    assert "<svg " not in minilm().to_html()
    unmeasured = dataclasses.replace(
        report(), steps=tuple(dataclasses.replace(s, ms=None, float_ms=None, metric=None) for s in report().steps)
    )
    assert len(re.findall(r"<svg ", unmeasured.to_html())) == 1


@pytest.mark.skipif(BROWSER is None, reason="no chromium here: the page is not looked at in a browser")
def test_a_browser_shows_the_page_and_sorts_it(tmp_path: Path) -> None:
    """A click on the heading of the errors turns the layers round; nothing is drawn outside the page."""
    assert BROWSER is not None
    click = """<script>
      const heads = [...document.querySelectorAll("#layers th")];
      heads[5].click(); heads[5].click();
      const names = [...document.querySelectorAll("#layers tbody tr")].map(row => row.cells[0].textContent);
      document.title = names[0] + "|" + names.length + "|" + (document.documentElement.scrollWidth <= innerWidth);
    </script></body>"""
    path = tmp_path / "report.html"
    path.write_text(report().to_html().replace("</body>", click), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,1500", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}", "--dump-dom"]
    found = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", found.stdout)
    assert title is not None
    assert title[1] == f"extra.0, again.0|{len(report().rows)}|true"
    assert (tmp_path / "page.png").stat().st_size > 20_000

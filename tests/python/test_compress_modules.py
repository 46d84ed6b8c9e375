"""compress on recurrent layers and embeddings: what is replaced, when, and that a file brings it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor import Recipe, steps
from tersor.module_conversion import _example, _judge
from tersor.modules import Candidate
from tersor.nn import Int8Embedding, Int8GRU, Int8GRUCell, Int8Linear, Int8LSTM
from tersor.selection import Choice


class Tagger(nn.Module):
    """Words to tags."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(200, 32)
        self.first = nn.LSTM(32, 24, bidirectional=True, batch_first=True)
        self.second = nn.GRU(48, 32, batch_first=True)
        self.cell = nn.GRUCell(32, 32)
        self.tags = nn.Linear(32, 12)

    def forward(self, words: Tensor) -> Tensor:
        y = self.second(self.first(self.words(words))[0])[0]
        state: Tensor = self.cell(y[:, -1])
        logits: Tensor = self.tags(state)
        return logits


@pytest.fixture
def model() -> Tagger:
    torch.manual_seed(0)
    return Tagger().eval()


@pytest.mark.parametrize("embeddings", [0, 8, 4])
def test_everything_is_replaced_by_force(model: Tagger, embeddings: int, tmp_path: Path) -> None:
    words = torch.randint(0, 200, (3, 7))
    recipe = Recipe([steps.Quantize(embeddings=embeddings, smooth=0)])
    result = tersor.compress(model, recipe, words, force=True, progress=False)
    fast = result.model
    kinds: tuple[Any, ...] = (Int8LSTM, Int8GRU, Int8GRUCell, Int8Linear)
    assert tuple(type(m) for m in (fast.first, fast.second, fast.cell, fast.tags)) == kinds
    assert (type(fast.words) is Int8Embedding) == (embeddings > 0)
    rows = {row.name: row for row in result.report.rows}
    assert rows["first"].action == "swapped"
    assert rows["first"].layer == "Int8LSTM"
    assert rows["first"].bytes_after < rows["first"].bytes_before
    assert rows["first"].rel_error is not None
    assert ("words" in rows) == (embeddings > 0)
    with torch.no_grad():
        assert (fast(words) - model(words)).abs().max() < (0.3 if embeddings == 4 else 0.05)
        tersor.save(fast, tmp_path / "tagger.tersor")
        assert torch.equal(tersor.load(tmp_path / "tagger.tersor", model=Tagger())(words), fast(words))
    assert isinstance(model.first, nn.LSTM)


def test_a_pattern_for_a_recurrent_layer_is_no_mistake(model: Tagger) -> None:
    recipe = Recipe([steps.Quantize(smooth=0)], exclude=["first"])
    result = tersor.compress(model, recipe, torch.randint(0, 200, (3, 7)), force=True, progress=False)
    assert result.report.warnings == ()
    assert type(result.model.first) is nn.LSTM


def test_patterns_and_ties(model: Tagger) -> None:
    model.cell.weight_hh = model.cell.weight_ih
    recipe = Recipe([steps.Quantize(smooth=0)], exclude=["second"])
    result = tersor.compress(model, recipe, force=True, progress=False)
    rows = {row.name: row for row in result.report.rows}
    assert rows["second"].reason == "not selected"
    assert type(result.model.second) is nn.GRU
    assert type(result.model.first) is Int8LSTM


def test_what_is_not_faster_stays(model: Tagger, monkeypatch: pytest.MonkeyPatch) -> None:
    times = (10.0, 11.0)
    monkeypatch.setattr("tersor.module_conversion.race", lambda *_: (times, True))
    for module in (model.words, model.first, model.cell):
        choice = Choice(Candidate(("layer",), module, None), None)
        made = Int8GRUCell.from_float(model.cell)
        _judge(choice, module, made, None)
        assert choice.reason is not None
        assert "kept" in choice.reason
        module(_example(module, torch.float32))
    times = (10.0, 2.0)
    choice = Choice(Candidate(("layer",), model.cell, None), None)
    _judge(choice, model.cell, made, None)
    assert choice.reason is None
    assert choice.verdict is not None
    assert choice.verdict.faster

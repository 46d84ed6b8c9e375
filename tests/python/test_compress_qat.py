"""The QAT step in compress: what is trained, what runs afterwards, what the report says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor import Recipe, RecipeError, steps
from tersor.nn import Int8Conv2d, Int8Linear


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.first, self.second = nn.Linear(64, 24), nn.Linear(24, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return self.second(torch.relu(self.first(y.flatten(1))))  # type: ignore[no-any-return]


def data(count: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(16, 1, 6, 6, generator=generator) for _ in range(count)]


def error(model: nn.Module, batches: list[Tensor]) -> float:
    with torch.no_grad():
        pairs = [(model(x), Net().eval()(x)) for x in batches]
    return float(sum((a - b).square().sum() for a, b in pairs) ** 0.5)


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_training_beats_rounding_and_runs_on_int8(activations: Any, tmp_path: Path) -> None:
    batches = data()
    model = Net().eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def run(epochs: int, rate: float) -> tersor.CompressionResult[Net]:
        step = steps.QAT("int2", activations, epochs=epochs, learning_rate=rate)
        recipe = Recipe([step], exclude=["first"])
        return tersor.compress(model, recipe, batches[0], seen, batches, force=True, progress=False)

    seen = batches if activations == "static" else None
    untrained, trained = run(1, 1e-9), run(8, 1e-2)
    assert error(trained.model, batches) < error(untrained.model, batches)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    notes = " ".join(trained.report.notes)
    assert "trained with rounding for 96 steps" in notes
    assert "1 linear layers (int2, linear) and 1 convolutions, 1 of them float" in notes
    assert type(trained.model.conv) is nn.Conv2d
    assert type(trained.model.norm) is nn.Identity
    assert len(trained.model.conv.weight[0].unique()) <= 4
    tersor.save(trained.model, tmp_path / "net.tersor")
    again = tersor.load(tmp_path / "net.tersor", model=Net())
    with torch.no_grad():
        assert torch.equal(again.eval()(batches[0]), trained.model.eval()(batches[0]))


def test_eight_bits_become_int8_layers_in_the_report() -> None:
    batches = data()
    recipe = Recipe([steps.QAT("int8", "static")])
    report = (made := tersor.compress(Net(), recipe, batches[0], None, batches, force=True, progress=False)).report
    assert isinstance(made.model.first, Int8Linear)
    assert made.model.first.x_scale > 0
    rows = {row.name: row for row in report.rows}
    assert rows["first"].action == rows["second"].action == "swapped"
    assert rows["first"].layer == "Int8Linear"
    assert rows["first"].rel_error is not None
    assert rows["first"].rel_error < 1e-5  # it computes what was trained
    assert report.totals.output_cosine is not None
    assert report.totals.output_cosine > 0.99
    assert isinstance(made.model.conv, Int8Conv2d)
    assert "1 convolutions, 0 of them float" in " ".join(report.notes)


def test_a_float_rest_can_be_quantised_in_no_second_step() -> None:
    with pytest.raises(RecipeError, match="quantised already"):
        Recipe([steps.QAT(), steps.QAT()]).check_order()


def test_data_and_settings_are_checked() -> None:
    with pytest.raises(RecipeError, match="pass train=batches"):
        tersor.compress(Net(), Recipe([steps.QAT()]), data()[0], progress=False)
    with pytest.raises(RecipeError, match="pass train=batches"):
        tersor.compress(Net(), Recipe([steps.QAT()]), data()[0], train=iter(data()), progress=False)
    for settings, message in (
        ({"weights": "int9"}, "weights = 'int9'"),
        ({"codebook": "affine"}, "at most 7 bits"),
        ({"epochs": 0}, "epochs = 0"),
        ({"steps": "lsq"}, "steps = 'lsq'"),
        ({"observe": 2}, "observe = 2 is not a number"),
    ):
        with pytest.raises(RecipeError, match=message):
            steps.QAT(**settings)  # type: ignore[arg-type]


class Passes(list[Tensor]):
    """Batches that count how often they are gone through."""

    count = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.count += 1
        return super().__iter__()


def test_a_finished_training_is_found_in_the_work_folder(tmp_path: Path) -> None:
    recipe, batches = Recipe([steps.QAT("int8", "static", epochs=2)]), Passes(data(3))

    def run() -> tersor.CompressionResult[Net]:
        settings: dict[str, Any] = {"force": True, "progress": False, "work": tmp_path / "work"}
        return tersor.compress(Net(), recipe, data(1)[0], data(2), batches, **settings)

    first = run()
    assert batches.count == 2
    again = run()
    assert batches.count == 2
    x = data(1)[0]
    with torch.no_grad():
        assert torch.equal(first.model(x), again.model(x))

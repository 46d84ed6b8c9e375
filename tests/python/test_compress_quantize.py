"""Quantize steps that do more than rounding to int8, in compress and in files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor import CompressionResult, Recipe, RecipeError, steps
from tersor.nn import CodebookLinear, Int8Linear
from tersor.quantize.codebooks import CODEBOOKS, decode, make_codebook
from tersor.quantize.observers import OBSERVERS, make_observer

WIDTH = 48


class Net(nn.Module):
    """Two layers without and with bias, and one that is called for inputs of more than 8 rows only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second, self.rare = nn.Linear(WIDTH, 40, bias=False), nn.Linear(40, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return self.rare(y) if len(x) > 8 else y


def batches(rows: int = 8, count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(6, WIDTH, generator=generator)
    noise = [torch.randn(rows, WIDTH, generator=generator) for _ in range(count)]
    return [torch.randn(rows, 6, generator=generator) @ mix + 0.2 * one + 0.5 for one in noise]


def run(calibration: Any = None, example: Any = None, **settings: Any) -> CompressionResult[Net]:
    recipe = Recipe([steps.Quantize(**settings)])
    return tersor.compress(Net(), recipe, example, calibration, force=True, progress=False)


def output_error(model: nn.Module, data: list[Tensor]) -> float:
    with torch.no_grad():
        x = torch.cat(data)[:, None]  # every row by itself, so that `rare` is left out
        pairs = [(model(row), Net()(row)) for row in x]
    return float(torch.stack([(a - b).square().sum() for a, b in pairs]).sum().sqrt())


def test_int8_corrections_run_in_int8_layers_with_the_solved_integers() -> None:
    data = batches()
    plain = run(data, smooth=0)
    better = run(data, smooth=0, corrections=["gptq", "bias"])
    assert isinstance(better.model.first, Int8Linear)
    assert better.model.first.bias is not None  # bias correction gave it one
    assert plain.model.first.bias is None
    assert output_error(better.model, data) < output_error(plain.model, data)
    assert any("gptq reduced the error of 2 of 2 layers" in note for note in better.report.notes)
    kept = {row.name: row.reason for row in better.report.kept}
    assert kept == {"rare": "never called on the calibration data"}
    remark = next(row.remark for row in better.report.swapped if row.name == "second")
    assert remark is not None
    assert remark.startswith("8 bits; error ")


def test_awq_becomes_the_input_scale_of_the_layer() -> None:
    data = [batch * torch.logspace(-1, 1, WIDTH) for batch in batches()]
    result = run(data, smooth=0, corrections=["awq"])
    assert isinstance(result.model.first, Int8Linear)
    assert "input_scale" in result.model.first.canonical_tensors()
    assert output_error(result.model, data) < output_error(run(data, smooth=0).model, data)


def test_static_ranges_and_scales_are_those_that_the_corrections_chose(tmp_path: Path) -> None:
    data = [batch.clone() for batch in batches()]
    data[2][3, 5] = 90.0  # one rare value in one channel
    settings: dict[str, Any] = {"activations": "static", "smooth": 0}
    plain = run(data, **settings)
    better = run(data, **settings, corrections=["smoothing", "range", "gptq", "bias"])
    assert isinstance(better.model.first, Int8Linear)
    assert better.model.first.smoothed
    assert better.model.first.x_scale < 0.3 * plain.model.first.x_scale
    assert output_error(better.model, data) < 0.5 * output_error(plain.model, data)
    notes = " ".join(better.report.notes)
    assert "smoothing reduced the error of " in notes
    assert "range reduced the error of " in notes


@pytest.mark.parametrize("observer", sorted(OBSERVERS))
def test_static_ranges_are_those_of_the_observer(observer: str) -> None:
    data = batches()
    result = run(data, activations="static", observer=observer, smooth=0)
    expected = make_observer(observer)
    for batch in data:
        expected.add(batch)
    scale, zero = expected.quantization()
    assert isinstance(result.model.first, Int8Linear)
    assert result.model.first.x_scale == pytest.approx(float(scale), rel=1e-6)
    assert result.model.first.x_zero_point == int(zero)


def test_samples_cap_what_is_looked_at() -> None:
    data = batches()
    capped = run(data, activations="static", samples=9, smooth=0)
    first = run(data[:2], activations="static", smooth=0)
    assert capped.model.first.x_scale == first.model.first.x_scale


class Loader:
    """Pictures that are made when they are asked for, and the most that were asked for in one pass."""

    most = 0

    def __iter__(self) -> Iterator[Tensor]:
        for index in range(100):
            self.most = max(self.most, index + 1)
            yield torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(index)) * (1 + index)


def test_samples_cap_what_convolutions_and_linear_layers_look_at() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    recipe = Recipe([steps.Quantize(activations="static", samples=5, corrections=["smoothing"])])
    loader = Loader()
    capped = tersor.compress(model, recipe, None, loader, force=True, progress=False)
    assert loader.most == 3
    whole = Recipe([steps.Quantize(activations="static", corrections=["smoothing"])])
    first = tersor.compress(model, whole, None, list(Loader())[:3], force=True, progress=False)
    x = next(iter(Loader()))
    with torch.no_grad():
        assert torch.equal(capped.model(x), first.model(x))


class Branches(nn.Module):
    """Convolutions and a linear layer that only large batches reach."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.rare = (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()),
        )
        self.head, self.aux = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        large = len(x) > 8
        y = (self.rare(y) if large else y).mean((2, 3))
        return self.aux(y) if large else self.head(y)  # type: ignore[no-any-return]


def test_convolutions_and_layers_that_were_never_reached_are_named_and_stay_float() -> None:
    model, recipe = Branches().eval(), Recipe([steps.Quantize(activations="static", observer="mse")])
    result = tersor.compress(model, recipe, None, list(Loader())[:3], force=True, progress=False)
    assert {row.name: row.reason for row in result.report.kept} == {
        "rare": "never called on the first batch of the calibration data",
        "aux": "never called on the calibration data",
    }
    assert type(result.model.rare[0]) is nn.Conv2d
    assert type(result.model.aux) is nn.Linear
    assert result.model(torch.randn(9, 3, 8, 8)).shape == (9, 4)


def test_example_inputs_serve_where_there_is_no_calibration_data() -> None:
    data = batches()
    result = run(None, data[0], smooth=0, corrections=["gptq"])
    assert any("gptq reduced" in note for note in result.report.notes)
    assert result.report.totals.output_cosine is not None


def test_a_result_is_saved_and_loaded(tmp_path: Path) -> None:
    data = batches()
    result = run(data, activations="static", observer="mse", corrections=["awq", "gptq", "bias"])
    tersor.save(result.model, tmp_path / "net.tersor")
    again = tersor.load(tmp_path / "net.tersor", model=tersor_skeleton())
    with torch.no_grad():
        assert torch.equal(again(data[0]), result.model(data[0]))


def tersor_skeleton() -> nn.Module:
    """The float model with the bias that bias correction added."""
    model = Net()
    model.first = nn.Linear(WIDTH, 40)
    return model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corrections": ["gptq2"]}, "corrections = "),
        ({"corrections": "gptq"}, "corrections = 'gptq' is not a list"),
        ({"weights": "int1"}, "weights = 'int1'"),
        ({"codebook": "fp4"}, "codebook = 'fp4'"),
        ({"codebook": "affine"}, "'affine' has at most 7 bits"),
        ({"group_size": 48}, "group_size = 48"),
        ({"observer": "max"}, "observer = 'max'"),
        ({"average_bits": 9}, "average_bits = 9"),
        ({"weights": "int4", "average_bits": 5}, "from 2 to the 4"),
        ({"samples": 0}, "samples = 0"),
        ({"corrections": ["range"]}, "'range' narrows the ranges of activations = 'static'"),
        ({"corrections": ["range"], "activations": "static", "observer": "mse"}, "got 'static' and 'mse'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        steps.Quantize(**settings)


def test_missing_and_spent_data_are_refused() -> None:
    with pytest.raises(RecipeError, match="corrections and average_bits need calibration data"):
        run(corrections=["gptq"])
    with pytest.raises(RecipeError, match="more than once"):
        run(iter(batches()), corrections=["gptq"])
    with pytest.raises(RecipeError, match='observer = "mse" look at the calibration data more than once'):
        run(iter(batches()), activations="static", observer="mse")


def test_a_full_step_goes_through_toml() -> None:
    step = steps.Quantize(
        "int4", "static", 0.3, "kmeans", 64, "percentile", ("awq", "gptq"), average_bits=3.5, samples=100
    )
    recipe = Recipe([step])
    assert Recipe.from_toml_text(recipe.to_toml()) == recipe


@pytest.mark.parametrize("codebook", sorted(CODEBOOKS))
@pytest.mark.parametrize("group_size", [None, 32])
def test_few_bits_run_in_layers_of_codes(codebook: str, group_size: int | None, tmp_path: Path) -> None:
    data = batches()
    settings: dict[str, Any] = {"weights": "int4", "codebook": codebook, "group_size": group_size, "smooth": 0}
    result = run(**settings)
    layer = result.model.first
    assert isinstance(layer, CodebookLinear)
    codes = make_codebook(codebook).fit(Net().first.weight, 4, group_size)
    assert torch.equal(layer.weight, decode(codes))
    assert result.report.totals.swapped == 3
    assert f"weights: int4, {codebook}" in " ".join(result.report.notes)
    tersor.save(result.model, tmp_path / "net.tersor")
    again = tersor.load(tmp_path / "net.tersor", model=Net())
    with torch.no_grad():
        assert torch.equal(again(data[0]), result.model(data[0]))
    better = run(data, **settings, corrections=["gptq"])
    assert output_error(better.model, data) < output_error(result.model, data)


def test_bits_on_average_differ_between_layers_and_keep_the_size() -> None:
    data = batches(16)
    result = run(data, smooth=0, average_bits=4.0, group_size=32)
    layers = {name: getattr(result.model, name) for name in ("first", "second", "rare")}
    assert all(isinstance(layer, CodebookLinear) for layer in layers.values())
    sizes = {name: layer.in_features * layer.out_features for name, layer in layers.items()}
    assert sum(layers[name].bits * size for name, size in sizes.items()) <= 4 * sum(sizes.values())
    assert "bits per layer: " in " ".join(result.report.notes)

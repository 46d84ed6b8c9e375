"""Running a recipe over a model: the copy, what decides, ranges, errors, and the float model left alone."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import weight_norm

from tersor import Recipe, RecipeError, SwapError, compress, restore, steps
from tersor.nn import Int8Linear
from tersor.tune import Verdict

DYNAMIC = Recipe([steps.Quantize()])
STATIC = Recipe([steps.Quantize(activations="static")])
PLAIN = Recipe([steps.Quantize(smooth=0)])


class Net(nn.Module):
    """Two branches, a layer that is never called, a counter, dropout and keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(16, 32)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(32)
        self.second = nn.Linear(32, 8)
        self.unused = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        self.calls += 1
        hidden = self.norm(self.dropout(torch.relu(self.first(x))))
        return {"y": scale * self.second(hidden), "calls": self.calls.clone()}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not [module for module in model.modules() if isinstance(module, Int8Linear)]
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("inputs", [torch.randn(5, 16), (torch.randn(5, 16), 2.0), [torch.randn(5, 16)]])
@pytest.mark.parametrize("training", [True, False])
def test_compress_leaves_the_float_model_alone(inputs: Any, training: bool) -> None:
    model = Net().train(training)
    model.norm.eval()
    before, random = state(model), torch.get_rng_state()
    result = compress(model, DYNAMIC, inputs, force=True)
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert (model.training, model.norm.training, model.dropout.training) == (training, False, training)
    made = result.model
    assert isinstance(made, Net)
    assert isinstance(made.first, Int8Linear)
    assert (made.training, made.norm.training, made.first.training) == (training, False, training)
    assert made.calls == 0
    assert made.norm is not model.norm
    assert made.norm.weight.data_ptr() != model.norm.weight.data_ptr()


def test_the_result_computes_with_int8_layers() -> None:
    model = Net().eval()
    x = torch.randn(5, 16)
    made = compress(model, PLAIN, x, force=True).model
    expected = copy.deepcopy(model)
    expected.first, expected.second = Int8Linear.from_float(model.first), Int8Linear.from_float(model.second)
    assert torch.equal(made(x)["y"], expected(x)["y"])
    assert type(made.unused) is nn.Linear


def test_layers_that_are_never_called_stay_float() -> None:
    report = compress(Net(), DYNAMIC, {"x": torch.randn(5, 16), "scale": 3.0}, force=True).report
    assert {row.name: row.reason for row in report.kept} == {"unused": "never called on example_inputs"}
    assert len(compress(Net(), DYNAMIC, force=True).report.swapped) == 3


def test_errors_are_those_of_each_layer() -> None:
    model = Net().eval()
    x = torch.randn(64, 16)
    result = compress(model, PLAIN, x, force=True)
    with torch.no_grad():
        hidden = model.norm(torch.relu(model.first(x)))
        for name, given in (("first", x), ("second", hidden)):
            layer = getattr(model, name)
            expected = layer(given)
            error = (Int8Linear.from_float(layer)(given) - expected).norm() / expected.norm()
            row = next(row for row in result.report.rows if row.name == name)
            assert row.rel_error == pytest.approx(float(error), rel=1e-3)
            assert 0 < row.rel_error < 0.02
        y, expected = result.model(x)["y"], model(x)["y"]
    totals = result.report.totals
    assert totals.output_error == pytest.approx(float((y - expected).norm() / expected.norm()), rel=1e-3)
    assert totals.output_cosine == pytest.approx(float(torch.cosine_similarity(y.ravel(), expected.ravel(), 0)), 1e-6)
    assert [row.name for row in result.report.worst()] == sorted(
        ["first", "second"], key=lambda name: -next(r.rel_error or 0 for r in result.report.rows if r.name == name)
    )


def test_a_large_error_comes_with_advice() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    x = torch.randn(16, 64)
    x[:, 0] = 1e4
    with torch.no_grad():
        model[0].weight[:, 0] = 0
    row = compress(model, DYNAMIC, x, force=True).report.rows[0]
    assert row.rel_error is not None
    assert row.rel_error > 0.05
    keep = 'Keep it float with exclude = ["0"].'
    assert row.suggestion is not None
    assert row.suggestion.startswith('corrections = ["smoothing"] brings ')
    assert row.suggestion.endswith(keep)
    few = torch.randn(400, 64)
    few[7, 0] = 1e4  # an outlier in one row only
    row = compress(model, STATIC, few, calibration=[few], force=True).report.rows[0]
    assert row.suggestion is not None
    assert row.suggestion.startswith('corrections = ["smoothing"] brings ')


class Judge:
    """Stands in for the tuner: int8 is faster where the layer has 32 inputs."""

    asked: list[tuple[int, tuple[int, ...], torch.dtype]]

    def __init__(self) -> None:
        Judge.asked = []

    def judge(self, layer: nn.Linear, rows: tuple[int, ...], dtype: torch.dtype) -> Verdict:
        Judge.asked.append((layer.in_features, rows, dtype))
        faster = layer.in_features == 32
        return Verdict(faster, {4: 8.0}, {4: 2.0 if faster else 9.0}, 0.05, "4x" if faster else "slower")


def test_rows_and_dtypes_of_the_example_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.selection.Tuner", Judge)
    result = compress(Net(), DYNAMIC, torch.randn(5, 16))
    assert Judge.asked == [(16, (5,), torch.float32), (32, (5,), torch.float32)]
    rows = {row.name: row for row in result.report.rows}
    assert (rows["first"].action, rows["first"].reason, rows["first"].rel_error) == ("kept", "slower", None)
    assert (rows["second"].action, rows["second"].rows, rows["second"].tersor_us) == ("swapped", (5,), {4: 2.0})
    assert type(result.model.first) is nn.Linear
    compress(nn.Sequential(nn.Linear(32, 8)).to(torch.float16), DYNAMIC, torch.randn(3, 4, 32).half())
    assert Judge.asked == [(32, (12,), torch.float16)]
    shared = nn.Linear(32, 32)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = shared

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(self.layer(input=x)[:1])
            return y

    report = compress(Twice(), DYNAMIC, torch.randn(7, 32)).report
    assert Judge.asked == [(32, (1, 7), torch.float32)]
    assert report.rows[0].rel_error is not None


def test_nothing_faster_is_an_error_that_names_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.selection.Tuner", Judge)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    with pytest.raises(SwapError, match=r"(?s)0, 1: slower.*force=True"):
        compress(model, DYNAMIC, torch.randn(2, 16))


def test_deterministic() -> None:
    x = torch.randn(5, 16)
    one, other = (compress(Net(), STATIC, x, calibration=[x, 2 * x], force=True) for _ in range(2))
    assert one.report == other.report
    assert one.report.to_json() == other.report.to_json()
    other_state = other.model.state_dict()
    assert all(torch.equal(tensor, other_state[name]) for name, tensor in one.model.state_dict().items())


def test_static_ranges_are_the_minimum_and_maximum_seen() -> None:
    model = Net().eval()
    batches = [torch.rand(4, 16) * 3 - 1, (torch.rand(4, 16) * 5 - 1,), {"x": torch.rand(4, 16)}]
    made = compress(
        model, Recipe([steps.Quantize(activations="static", smooth=0)]), calibration=iter(batches), force=True
    )
    low = min(float(batch.min()) for batch in (batches[0], batches[1][0], batches[2]["x"]))
    high = max(float(batch.max()) for batch in (batches[0], batches[1][0], batches[2]["x"]))
    assert made.model.first.x_scale == pytest.approx((high - low) / 255)
    assert made.model.first.x_zero_point == round(-low / ((high - low) / 255))
    assert {row.name: row.reason for row in made.report.kept} == {"unused": "never called on the calibration data"}
    positive = compress(nn.Sequential(nn.Linear(4, 4)), STATIC, calibration=[torch.full((1, 4), 5.1)], force=True)
    assert (positive.model[0].x_scale, positive.model[0].x_zero_point) == (pytest.approx(0.02), 0)
    zeros = compress(nn.Sequential(nn.Linear(4, 4)), STATIC, calibration=[torch.zeros(1, 4)], force=True)
    assert (zeros.model[0].x_scale, zeros.model[0].x_zero_point) == (1.0, 0)


def test_static_is_close_on_data_like_the_calibration() -> None:
    model = Net().eval()
    x = torch.randn(64, 16)
    result = compress(model, STATIC, x, calibration=[x], force=True)
    assert all(0 < (row.rel_error or 0) < 0.03 for row in result.report.swapped)


@pytest.mark.parametrize(
    ("calibration", "error", "message"),
    [
        (None, RecipeError, "needs calibration data"),
        ([], SwapError, "held no batch"),
        ([torch.full((2, 16), float("nan"))], SwapError, "first was given NaN or infinity in calibration batch 0"),
        ([torch.randn(2, 16), torch.randn(2, 3)], SwapError, r"calibration batch 1, called as model\(inputs\)"),
    ],
)
def test_bad_calibration(calibration: Any, error: type[Exception], message: str) -> None:
    model = Net()
    before = state(model)
    with pytest.raises(error, match=message):
        compress(model, STATIC, calibration=calibration, force=True)
    assert_untouched(model, before)


def test_errors_of_the_model_come_through_with_context() -> None:
    class Broken(Net):
        def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
            super().forward(x, scale)
            raise KeyError("no such thing")

    model = Broken()
    before = state(model)
    with pytest.raises(
        SwapError, match=r"failed on example_inputs, called as model\(\*\*inputs\).*x: torch.float32 \(2,"
    ) as caught:
        compress(model, DYNAMIC, {"x": torch.randn(2, 16)}, force=True)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "KeyError: 'no such thing'" in str(caught.value)
    assert_untouched(model, before)
    assert model.training


def test_only_recipes_of_one_quantize_step() -> None:
    with pytest.raises(RecipeError, match="expected a Recipe, got Quantize"):
        compress(Net(), steps.Quantize())  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"step 2 .*, 'quantize', can't work there: the model is quantised already"):
        compress(Net(), Recipe([steps.Quantize(), steps.Quantize()]))
    with pytest.raises(SwapError, match=r"expected an nn\.Module"):
        compress("model", DYNAMIC)  # type: ignore[type-var]


def test_data_that_nothing_uses_is_mentioned() -> None:
    with pytest.warns(UserWarning, match="train data was given") as caught:
        report = compress(Net(), PLAIN, calibration=[1], train=[2], force=True).report
    assert len(report.warnings) == len(caught) == 2


def test_include_and_exclude_come_from_the_recipe() -> None:
    recipe = Recipe([steps.Quantize()], include=["first", "second"], exclude=["s*"])
    report = compress(Net(), recipe, force=True).report
    assert {row.name: row.reason for row in report.kept} == {"second": "excluded by 's*'", "unused": "not included"}


def test_a_bare_linear() -> None:
    linear = nn.Linear(8, 4)
    result = compress(linear, DYNAMIC, torch.randn(3, 8), force=True)
    assert isinstance(result.model, Int8Linear)
    assert type(linear) is nn.Linear
    assert result.report.rows[0].name == "(model)"
    assert result.report.rows[0].rel_error is not None


def test_shared_and_tied_layers_in_the_copy() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(8, 8))
    model[3].weight = nn.Parameter(model[3].weight.detach())
    tied = nn.Linear(8, 8, bias=False)
    tied.weight = model[3].weight
    model.append(tied)
    made = compress(model, DYNAMIC, torch.randn(2, 8), force=True)
    assert made.model[0] is made.model[2]
    assert made.model[3].weight is made.model[4].weight
    assert made.model[3].weight is not model[3].weight
    assert [(row.name, row.aliases) for row in made.report.swapped] == [("0", ("2",))]
    assert len(compress(model, DYNAMIC, torch.randn(2, 8), untie=True, force=True).report.swapped) == 3


def test_references_from_elsewhere_follow_into_the_copy() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.plain = [self.layer]
            self.layer.owner = [self]

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.plain[0](x)
            return y

    model = Listed()
    made = compress(model, DYNAMIC, torch.randn(2, 8), force=True).model
    assert made.plain[0] is made.layer
    assert made.layer.owner[0] is made
    assert isinstance(made.layer, Int8Linear)
    assert model.layer.owner[0] is model


def test_hooks_are_copied() -> None:
    model = Net()
    seen: list[str] = []
    handle = model.first.register_forward_hook(lambda module, args, y: seen.append(type(module).__name__))
    made = compress(model, DYNAMIC, force=True).model
    handle.remove()
    made(torch.randn(4, 16))
    assert seen == ["Int8Linear"]


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weight_norm_in_a_neighbour_can_be_copied() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    x = torch.randn(3, 8)
    made = compress(model, DYNAMIC, x, force=True)
    assert [row.action for row in made.report.rows] == ["kept", "swapped"]
    assert torch.equal(made.model[0](x), model[0](x))


def test_a_copy_of_its_own_kind() -> None:
    class Stubborn(nn.Sequential):
        def __deepcopy__(self, memo: dict[int, Any]) -> Stubborn:
            return Stubborn(*(copy.deepcopy(module) for module in self))

    made = compress(Stubborn(nn.Linear(8, 8), nn.ReLU()), DYNAMIC, torch.randn(2, 8), force=True)
    assert isinstance(made.model[0], Int8Linear)

    class Impossible(nn.Sequential):
        def __deepcopy__(self, memo: dict[int, Any]) -> Impossible:
            raise TypeError("not me")

    with pytest.raises(SwapError, match=r"can't be deep-copied \(TypeError: not me\); tersor\.swap"):
        compress(Impossible(nn.Linear(8, 8)), DYNAMIC, force=True)


def test_the_result_does_not_hold_the_float_model() -> None:
    model = Net()
    refs = [weakref.ref(model.first), weakref.ref(model.first.weight)]
    made = compress(model, DYNAMIC, force=True)
    weight = made.model.first.weight.clone()
    del model
    gc.collect()
    assert [ref() for ref in refs] == [None, None]
    restore(made.model)
    assert torch.equal(made.model.first.weight, weight)


def test_peak_memory() -> None:
    """Run in a process of its own, whose high-water mark is not that of other tests."""
    code = """
import torch
from torch import nn
from tersor import Recipe, compress, steps
model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(12)))
x = torch.randn(1, 2048)
compress(nn.Sequential(nn.Linear(64, 64)), Recipe([steps.Quantize()]), torch.randn(1, 64), force=True)
def peak():  # not ru_maxrss, which starts at the parent's
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
result = compress(model, Recipe([steps.Quantize()]), x, force=True, progress=False)
print(peak() - before, result.report.totals.bytes_after)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    grown, compressed = map(int, out.split())
    assert compressed < grown * 1.05 + (8 << 20)
    assert grown < compressed + (24 << 20)

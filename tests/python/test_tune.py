"""Verdicts, the cache of measurements, and tuning whole models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

import tersor
from tersor import tune_cache
from tersor.errors import SwapError, TersorError
from tersor.nn import Int8Linear
from tersor.tune import BUCKETS, Tuner, bucket_of, decide

module = import_module("tersor.tune")  # `tersor.tune` is the function

Race = Callable[[Sequence[nn.Module], Sequence[nn.Module], torch.Tensor], tuple[tuple[float, float], bool]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TERSOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tune_cache, "_warned", set())
    return tmp_path / "cache"


@pytest.fixture
def races(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the stop watch: 100 us against 50 us; the list tells the rows that were measured."""
    rows: list[int] = []

    def race(
        floats: Sequence[nn.Module], packs: Sequence[nn.Module], x: torch.Tensor
    ) -> tuple[tuple[float, float], bool]:
        rows.append(len(x))
        return (100.0, 50.0), True

    monkeypatch.setattr(module, "race", race)
    return rows


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("tune-*.json")
    return path


@pytest.mark.parametrize(
    ("rows", "bucket"), [(1, 1), (2, 4), (4, 4), (5, 16), (17, 64), (65, 256), (256, 256), (257, 256), (100_000, 256)]
)
def test_a_number_of_rows_is_judged_by_the_next_bucket(rows: int, bucket: int) -> None:
    assert bucket_of(rows) == bucket


def test_one_slow_bucket_keeps_the_layer_and_gives_the_reason() -> None:
    verdict = decide({1: 90.0, 4: 57.0, 16: 80.0}, {1: 30.0, 4: 61.0, 16: 40.0})
    assert not verdict.faster
    assert verdict.reason == "float 57 us, int8 61 us at 4 rows: kept"


@pytest.mark.parametrize(("int8", "faster"), [(100 / 1.06, True), (100 / 1.05, True), (100 / 1.04, False)])
def test_the_margin_decides_close_calls(int8: float, faster: bool) -> None:
    verdict = decide({1: 100.0}, {1: int8})
    assert (verdict.faster, verdict.margin) == (faster, 0.05)
    assert verdict.reason.startswith(f"float 100 us, int8 {int8:.0f} us at 1 row: ")
    assert verdict.reason.endswith("swapped" if faster else "less than 5% faster, kept")


def test_a_real_measurement_covers_the_buckets_and_leaves_everything_as_it_was() -> None:
    layer, threads = nn.Linear(64, 96), torch.get_num_threads()
    layer.register_forward_hook(lambda *_: pytest.fail("the user's layer was called"))
    before = layer.weight.detach().clone()
    tuner = Tuner(threads=1)
    verdict = tuner.judge(layer, (3, 200, 4), torch.float32)
    assert list(verdict.float_us) == list(verdict.tersor_us) == [4, 256]
    assert all(time > 0 for time in (*verdict.float_us.values(), *verdict.tersor_us.values()))
    assert verdict.float_us[256] > verdict.float_us[4]
    assert verdict.faster == all(verdict.float_us[n] / verdict.tersor_us[n] >= 1.05 for n in (4, 256))
    assert tuner.measured == 2
    assert torch.equal(layer.weight, before)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_layers_are_measured_in_their_dtype(dtype: torch.dtype, races: list[int]) -> None:
    kinds: list[tuple[torch.dtype, torch.dtype]] = []
    inner: Race = module.race

    def race(
        floats: Sequence[nn.Module], packs: Sequence[nn.Module], x: torch.Tensor
    ) -> tuple[tuple[float, float], bool]:
        kinds.append((floats[0].weight.dtype, x.dtype))  # type: ignore[arg-type]
        assert packs[0](x).dtype == floats[0](x).dtype == dtype
        return inner(floats, packs, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "race", race)
        Tuner(cache=False).judge(nn.Linear(32, 32).to(dtype), [1], dtype)
    assert kinds == [(dtype, dtype)]


def test_without_rows_every_bucket_is_measured(races: list[int]) -> None:
    Tuner().judge(nn.Linear(8, 8))
    assert races == list(BUCKETS)


def test_each_side_walks_through_enough_copies_to_leave_the_inner_caches() -> None:
    layer = nn.Linear(384, 384)
    copies = module.float_copies(layer, torch.float32)
    assert len(copies) * layer.weight.numel() * 4 >= 16 << 20
    assert copies[0].weight.data_ptr() == layer.weight.data_ptr()
    assert len({copy.weight.data_ptr() for copy in copies}) == len(copies)
    assert all(torch.equal(copy.weight, layer.weight) for copy in copies)
    assert len(module.float_copies(nn.Linear(8, 8), torch.float32)) == 32
    assert len(module.float_copies(nn.Linear(2048, 2048), torch.float32)) == 1


def test_measurements_are_remembered_per_layer_and_thread_count(races: list[int], folder: Path) -> None:
    layer = nn.Linear(8, 16)
    first = Tuner(threads=1).judge(layer, [1, 4])
    again = Tuner(threads=1)
    assert again.judge(layer, [1, 4]) == first
    assert again.measured == 0
    assert races == [1, 4]
    again.judge(layer, [64])
    again.judge(nn.Linear(8, 16, bias=False), [1])
    again.judge(layer, [1], torch.bfloat16)
    assert races == [1, 4, 64, 1, 1]
    Tuner(threads=2).judge(layer, [1])
    assert races == [1, 4, 64, 1, 1, 1]
    assert len(list(folder.glob("tune-*.json"))) == 2


def test_the_file_says_what_it_belongs_to(races: list[int], folder: Path) -> None:
    Tuner(threads=1).judge(nn.Linear(8, 16), [1])
    data = json.loads(only_file(folder).read_text())
    assert data["schema"] == "tersor.tune/1"
    assert data["key"]["threads"] == "1"
    assert data["key"]["isa"] == tersor.kernels.active()
    assert set(data["key"]) == {"cpu", "isa", "threads", "tersor", "build", "torch"}
    assert data["layers"] == {"16x8+bias float32": {"1": [100.0, 50.0]}}
    assert [path.name for path in folder.iterdir()] == [only_file(folder).name]


def test_another_instruction_set_has_a_file_of_its_own(races: list[int], folder: Path) -> None:
    with tersor.kernels.use("scalar"):
        Tuner(threads=1).judge(nn.Linear(8, 16), [1])
    assert json.loads(only_file(folder).read_text())["key"]["isa"] == "scalar"
    if tersor.kernels.active() != "scalar":
        Tuner(threads=1).judge(nn.Linear(8, 16), [1])
        assert races == [1, 1]


def test_without_the_cache_no_file_is_read_or_written(races: list[int], folder: Path) -> None:
    for _ in range(2):
        Tuner(cache=False).judge(nn.Linear(8, 8), [1])
    assert races == [1, 1]
    assert not folder.exists()


def test_measurements_on_a_busy_host_are_used_but_not_remembered(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(module, "race", lambda *_: ((100.0, 50.0), False))
    tuner = Tuner()
    verdict = tuner.judge(nn.Linear(8, 8), [1])
    assert verdict.faster
    assert verdict.reason.endswith("(busy host, measured on one thread)")
    tuner.judge(nn.Linear(8, 8), [1])
    assert tuner.measured == 1
    assert not folder.exists()


def test_a_busy_host_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([0, 1000])
    monkeypatch.setattr(module, "_switches", lambda: next(counts))
    layer = nn.Linear(16, 16)
    with torch.inference_mode():
        times, calm = module.race([layer], [Int8Linear.from_float(layer)], torch.ones(1, 16))
    assert not calm
    assert min(times) > 0


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 8)
        self.odd = type("Odd", (nn.Linear,), {})(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))[0] + self.odd(x[0, :1])


def test_a_model_is_tuned_for_the_rows_of_its_inputs(races: list[int]) -> None:
    result = tersor.tune(Model(), torch.zeros(3, 5, 8))
    layers = {layer.names[0]: layer for layer in result.layers}
    assert races == [16, 16]
    assert layers["first"].rows == (15,)
    assert layers["first"].verdict is not None
    assert layers["first"].verdict.faster
    assert layers["unused"].reason == "never called on example_inputs"
    assert "is a subclass" in layers["odd"].reason
    assert result.measured == 2
    assert json.loads(result.to_json())["layers"][0]["layer"] == "16x8+bias float32"


@pytest.mark.parametrize("width", [80, 100])
def test_the_table_fits_and_shows_both_times(width: int, races: list[int]) -> None:
    table = tersor.tune(Model()).table(width)
    assert max(map(len, table.splitlines())) <= width
    assert "2.00x" in table
    assert "int8 is faster for 3 of 4 linear layers." in table
    assert "odd: " in table


def test_progress_names_what_is_measured(races: list[int]) -> None:
    told: list[str] = []
    Tuner(progress=told.append).judge(nn.Linear(8, 16, bias=False), [4])
    assert told == ["16x8 float32 at 4 rows"]


def test_conv1d_of_transformers_is_measured_as_it_is() -> None:
    utils = pytest.importorskip("transformers.pytorch_utils")
    told: list[str] = []
    verdict = Tuner(cache=False, progress=told.append).judge(utils.Conv1D(24, 8), [1])
    assert told == ["conv1d 24x8+bias float32 at 1 rows"]
    assert verdict.float_us[1] > 0


def test_what_cannot_be_judged_is_an_error() -> None:
    with pytest.raises(TersorError, match="threads must be at least 1, got 0"):
        Tuner(threads=0)
    with pytest.raises(ValueError, match="ReLU has no weight"):
        Tuner().judge(nn.ReLU())
    with pytest.raises(SwapError, match="no linear layer"):
        tersor.tune(nn.Sequential(nn.ReLU()))

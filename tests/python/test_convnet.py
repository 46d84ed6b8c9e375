"""Convolutional networks as int8 graphs: fused, calibrated, close to float, saved, loaded, copied, exported."""

from __future__ import annotations

import copy
import operator
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import tersor
from tersor import Recipe, kernels, steps
from tersor.convnet import Converted, Int8Network, convert, quantize_convnet
from tersor.errors import RecipeError, StructureError, SwapError, TersorError
from tersor.nn import Int8Graph
from tersor.nn.int8_graph_config import output_extents
from tersor.structure import edit, records
from tersor.tune import decide

STATIC = Recipe([steps.Quantize(activations="static")])


class Block(nn.Module):
    """A convolution, batch norm, relu, another, and the input added."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels * stride, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels * stride)
        self.two = nn.Conv2d(channels * stride, channels * stride, 3, 1, 1)
        self.short = nn.Conv2d(channels, channels * stride, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(F.relu(self.norm(self.one(x))))
        return F.relu(y + self.short(x))


class Residual(nn.Module):
    """A small ResNet: stem with max pool, blocks, global pool, flatten by view, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(Block(16), Block(16, 2), Block(32))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.blocks(self.stem(x)))
        return self.fc(y.view(y.size(0), -1))


class Mobile(nn.Module):
    """Inverted bottlenecks of functions, uneven padding, hard swish, average pooling, a flatten of many pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.2)
        self.expand = nn.Conv2d(8, 40, 1)
        self.deep = nn.Conv2d(40, 40, 5, padding=2, groups=40)
        self.norm = nn.BatchNorm2d(40)
        self.project = nn.Conv2d(40, 8, 1)
        self.fc = nn.Linear(8 * 4 * 4, 12)
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, None, 2))
        y = F.hardswish(self.expand(x))
        y = F.silu(self.norm(self.deep(y)))
        x = F.avg_pool2d(operator.add(self.project(y), x), 2)
        return self.out(F.dropout(F.relu(self.fc(torch.flatten(x, 1))), training=self.training))


class Gated(nn.Module):
    """Has an operation between its convolutions that has no int8 form."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        y = y * torch.sigmoid(y.mean((2, 3), keepdim=True))
        return F.relu(self.second(y)).amax((2, 3))


class Branching(nn.Module):
    """Can't be traced as a whole; its part can."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        return y if float(y.sum()) > 0 else -y


NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (2, 3, 33, 40)),
    "mobile": (Mobile, (3, 3, 16, 16)),
    "gated": (Gated, (2, 4, 9, 9)),
    "branching": (Branching, (2, 3, 12, 12)),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    cls, shape = NETWORKS[name]
    model, x = cls().eval(), torch.randn(shape)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model, x


def values(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, Converted, Tensor]:
    model, x = network(request.param)
    work = copy.deepcopy(model)
    return model, work, quantize_convnet(work, [x], force=True), x


def simulated(converted: Converted, part: int, x: Tensor) -> Tensor:
    """A graph's result in plain torch: every tensor rounded to its bytes, every weight to its integers."""
    made = converted.parts[part].graphs[0]
    config, tensors = made.graph.config(), made.graph.canonical_tensors()

    def rounded(value: Tensor, quantization: list[float]) -> Tensor:
        scale, zero = quantization
        return ((value / scale).round() + zero).clamp(0, 255).sub(zero).mul(scale)

    known = [rounded(x.double(), config["input"])]
    for i, node in enumerate(config["nodes"]):
        y, s = known[node["input"]], node["shape"]
        if node["kind"] == "conv":
            weight = tensors[f"{i}_weight_q"].double() * tensors[f"{i}_weight_scale"].double().reshape(-1, 1, 1, 1)
            padded = F.pad(y, (s[10], s[12], s[9], s[11]))
            y = F.conv2d(padded, weight, tensors[f"{i}_bias"].double(), s[5:7], 0, s[7:9], s[2])
        elif node["kind"] == "pool" and node["whole"]:
            y = y.mean((2, 3), keepdim=True)
        elif node["kind"] == "pool" and node["pooling"] == "max":
            y = F.max_pool2d(y, s[3:5], s[5:7], s[9:11])
        elif node["kind"] == "pool":
            y = F.avg_pool2d(y, s[3:5], s[5:7], s[9:11])
        y = y + known[node["other"]] if node["other"] >= 0 else y
        act: dict[str, Any] = {"relu": F.relu, "relu6": F.relu6, "hard_swish": F.hardswish, "silu": F.silu}
        y = act.get(node["activation"], lambda value: value)(y)
        last = i + 1 == len(config["nodes"])
        keeps = node["kind"] == "pool" and node["pooling"] == "max"
        known.append(y if last or keeps else rounded(y, node["as"]))
    return known[-1].flatten(1) if config["flat"] else known[-1]


@pytest.mark.parametrize(("name", "operations"), [("residual", 11), ("mobile", 7)])
def test_a_whole_network_becomes_one_graph_of_fused_operations(name: str, operations: int) -> None:
    model, x = network(name)
    work = copy.deepcopy(model)
    converted = quantize_convnet(work, [x], force=True)
    assert type(work) is Int8Network
    assert isinstance(work.body, Int8Graph)
    assert list(work.parameters()) == []
    nodes = work.body.config()["nodes"]
    assert len(nodes) == operations
    assert converted.parts[0].islands() == []
    y, expected = values(work, x), simulated(converted, 0, x)
    # A sum at the edge between two bytes may round the other way: one step of a byte changes little, and few do.
    assert (y.double() - expected).abs().max() < 0.02 * expected.abs().max()
    assert F.cosine_similarity(values(model, x).flatten(), y.flatten(), 0) > 0.99


def test_close_to_float_whatever_is_left_of_it(case: tuple[nn.Module, nn.Module, Converted, Tensor]) -> None:
    model, work, converted, x = case
    assert converted.graphs
    y, expected = values(work, x), values(model, x)
    assert y.shape == expected.shape
    assert F.cosine_similarity(expected.flatten(), y.flatten(), 0) > 0.99


def test_an_operation_without_int8_form_is_an_island_with_a_reason() -> None:
    model, x = network("gated")
    converted = quantize_convnet(model, [x], force=True)
    assert list(converted.graphs) == ["body.int8_0", "body.int8_1"]
    reasons = dict(converted.parts[0].islands())
    assert "sigmoid has no int8 form" in reasons.values()
    assert [name for name, _ in model.named_parameters()] == []  # the float weights are gone


def test_parts_of_what_cannot_be_traced_are_converted() -> None:
    model, x = network("branching")
    converted = quantize_convnet(model, [x], force=True)
    assert type(model) is Branching
    assert list(converted.graphs) == ["features.body"]


def test_saves_loads_and_copies(case: tuple[nn.Module, nn.Module, Converted, Tensor], tmp_path: Path) -> None:
    model, work, _, x = case
    y = values(work, x)
    tersor.save(work, tmp_path / "net.tersor")
    assert [record["kind"] for record in records(work)] == ["int8_convnet"]
    loaded = tersor.load(tmp_path / "net.tersor", model=copy.deepcopy(model))
    assert torch.equal(values(loaded, x), y)
    copied = copy.deepcopy(work)
    assert torch.equal(values(copied, x), y)
    tersor.save(copied, tmp_path / "again.tersor")
    assert (tmp_path / "again.tersor").read_bytes() == (tmp_path / "net.tersor").read_bytes()
    copied.load_state_dict(work.state_dict())
    assert torch.equal(values(copied, x), y)


def test_pickles_and_exports() -> None:
    model, x = network("residual")
    quantize_convnet(model, [x], force=True)
    y = values(model, x)
    assert torch.equal(values(pickle.loads(pickle.dumps(model)), x), y)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), y)
    torch._dynamo.reset()
    with torch.no_grad():
        assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(x), y)


def test_pictures_do_not_depend_on_their_batch_or_on_threads() -> None:
    model, x = network("residual")
    quantize_convnet(model, [x], force=True)
    y = values(model, x)
    assert torch.equal(values(model, x[:1]), y[:1])
    assert torch.equal(values(model, x.to(memory_format=torch.channels_last)), y)
    assert torch.equal(values(model, x.bfloat16()), values(model, x.bfloat16().float()).bfloat16())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(values(model, x), y)
    finally:
        torch.set_num_threads(threads)
    with kernels.use("scalar"):
        assert torch.equal(values(model, x), y)
    x[1, 0, 3, 3] = float("nan")
    assert torch.isnan(values(model, x)[1]).all()
    assert torch.equal(values(model, x)[:1], y[:1])


def test_memory_is_no_more_than_the_two_largest_tensors() -> None:
    """And one more where a summand waits, which is smaller: of a bottleneck, what goes in is what is added."""
    model, x = network("mobile")
    converted = quantize_convnet(model, [x], force=True)
    (graph,) = converted.graphs.values()
    sizes = sorted(_tensor_bytes(graph.config(), *x.shape[2:]))
    assert graph.peak_bytes(*x.shape[2:]) <= sizes[-1] + sizes[-2] + sizes[-3] + 3 * 64
    chain = nn.Sequential(
        *(nn.Sequential(nn.Conv2d(c, d, 3, 2, 1), nn.ReLU()) for c, d in ((3, 16), (16, 24), (24, 8)))
    )
    converted = quantize_convnet(chain, [x], force=True)
    (graph,) = converted.graphs.values()
    sizes = sorted(_tensor_bytes(graph.config(), *x.shape[2:]))
    assert graph.peak_bytes(*x.shape[2:]) <= sizes[-1] + sizes[-2] + 2 * 64


def _tensor_bytes(config: dict[str, Any], height: int, width: int) -> list[int]:
    """Of every tensor of a picture but the result, which is floats."""
    prefixes = [{**config, "nodes": config["nodes"][:count]} for count in range(1, len(config["nodes"]))]
    extents = [(config["channels"], height, width), *(output_extents(prefix, height, width) for prefix in prefixes)]
    return [channels * rows * columns for channels, rows, columns in extents]


def test_compress_reports_graphs_and_islands(tmp_path: Path) -> None:
    model, x = network("gated")
    result = tersor.compress(model, STATIC, x, calibration=[x], force=True, progress=False)
    assert type(model) is Gated
    assert {row.layer for row in result.report.swapped} == {"Int8Graph"}
    assert any("no int8 form" in row.reason for row in result.report.kept)
    assert "2 conv" not in result.report.table()
    assert result.report.totals.output_cosine > 0.99
    tersor.save(result.model, tmp_path / "net.tersor")
    loaded = tersor.load(tmp_path / "net.tersor", model=model)
    assert torch.equal(values(loaded, x), values(result.model, x))


def test_a_graph_that_is_not_faster_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "compare", lambda before, after, x: decide({len(x): 1.0}, {len(x): 2.0}))
    model, x = network("residual")
    converted = quantize_convnet(model, iter([x]))
    assert not converted.graphs
    assert type(model) is Residual
    (made,) = converted.parts[0].graphs
    assert made.verdict is not None
    assert made.verdict.tersor_us == {2: 2.0}


def test_excluded_modules_stay_float() -> None:
    model, x = network("residual")
    recipe = Recipe(STATIC.steps, exclude=["blocks.1.*"])
    result = tersor.compress(model, recipe, x, calibration=[x], force=True, progress=False)
    assert any(row.reason == "excluded by the recipe" for row in result.report.kept)
    assert any("blocks.1" in name for name, _ in result.model.named_parameters())


def test_bad_calibration_and_inputs_are_errors() -> None:
    model, x = network("residual")
    with pytest.raises(RecipeError, match="needs calibration data"):
        tersor.compress(model, STATIC, x, progress=False)
    with pytest.raises(SwapError, match="there was none"):
        quantize_convnet(model, [])
    with pytest.raises(SwapError, match=r"^calibration batch 1: .* holds NaN or infinity$"):
        quantize_convnet(model, [x, x * float("nan")])
    quantize_convnet(model, [x], force=True)
    for bad, got in ((x[:, :2], "[2, 2, 33, 40]"), (x.double(), "float64"), (x[0], "[3, 33, 40]")):
        with pytest.raises(TersorError) as caught:
            model(bad)
        assert got in str(caught.value)
    with pytest.raises(RuntimeError, match="at least one pixel"):
        model(x[:, :, :0])


def _edit_of(model: nn.Module) -> dict[str, Any]:
    config: dict[str, Any] = records(model)[0]["config"]
    return config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(more=1), "exactly the keys"),
        (lambda c: c.update(path="nowhere"), "no module"),
        (lambda c: c.update(segments=3), "must be a list"),
        (lambda c: c["segments"][0].update(nodes=["x"]), "lie between"),
        (lambda c: c["segments"][0].update(nodes=["nowhere"]), "no node"),
        (lambda c: c["segments"][0].update(source="fc"), "lie between"),
        (lambda c: c["segments"][0].update(result="blocks_0_one"), "read from outside"),
        (lambda c: c["segments"][0].update(graph={}), "expected exactly"),
        (lambda c: c["segments"][0]["graph"].update(channels=0), "channels"),
        (lambda c: c["segments"][0]["graph"]["nodes"][0].update(input=5), "input"),
    ],
)
def test_hostile_edits_are_refused_and_change_nothing(change: Any, message: str) -> None:
    model, x = network("residual")
    work = copy.deepcopy(model)
    quantize_convnet(work, [x], force=True)
    config = _edit_of(work)
    change(config)
    before = values(model, x)
    with pytest.raises((StructureError, ValueError), match=message):
        edit(model, "int8_convnet", config)
    assert type(model) is Residual
    assert torch.equal(values(model, x), before)

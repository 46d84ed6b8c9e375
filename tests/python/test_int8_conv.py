"""Int8Conv2d and Int8Conv1d: what a drop-in convolution promises."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor import kernels
from tersor.errors import TersorError
from tersor.nn import REGISTRY, Int8Conv1d, Int8Conv2d, Int8Graph
from tersor.ops import GRAPH_S8

CONVS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(5, 7, 3), (2, 5, 9, 8)),
    "padded": (nn.Conv2d(6, 10, 3, padding=1), (2, 6, 9, 8)),
    "same": (nn.Conv2d(6, 10, (2, 4), padding="same", dilation=2), (2, 6, 9, 8)),
    "strided": (nn.Conv2d(3, 16, 7, stride=2, padding=3), (1, 3, 20, 21)),
    "grouped": (nn.Conv2d(8, 12, 3, groups=4, bias=False), (2, 8, 7, 7)),
    "depthwise": (nn.Conv2d(70, 70, 5, padding=2, groups=70), (2, 70, 9, 9)),
    "pointwise": (nn.Conv2d(24, 40, 1), (2, 24, 5, 5)),
    "one picture": (nn.Conv2d(4, 6, 3), (4, 9, 9)),
    "conv1d": (nn.Conv1d(6, 10, 3, padding=1, stride=2), (2, 6, 20)),
    "conv1d same": (nn.Conv1d(6, 10, 4, padding="same", dilation=3), (2, 6, 20)),
    "conv1d alone": (nn.Conv1d(6, 10, 3), (6, 20)),
}


@pytest.fixture(params=CONVS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Any, Tensor]:
    torch.manual_seed(0)
    module, shape = CONVS[request.param]
    module = copy.deepcopy(module).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    cls: Any = Int8Conv2d if isinstance(module, nn.Conv2d) else Int8Conv1d
    return module, cls.from_float(module), torch.randn(shape)


def values(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


def bound(layer: Any, x: Tensor) -> Tensor:
    """|x^ w^ - x w| <= |x^ - x| |w^| + |x| |w^ - w| with |x^ - x| <= s_x / 2 and |w^ - w| <= s_w / 2; then rounding."""
    batch = x if x.dim() == layer._dimensions + 2 else x[None]
    s_x = (batch.flatten(1).amax(1).clamp_min(0) - batch.flatten(1).amin(1).clamp_max(0)) / 255
    s_w = layer.canonical_tensors()["weight_scale"].reshape(-1, *[1] * (layer._dimensions + 1))
    float_layer = layer.to_float().double()
    float_layer.bias = None
    wide = batch.double()
    float_layer.weight = nn.Parameter(layer.weight.double().abs())
    of_x = float_layer(torch.ones_like(wide)) * s_x.reshape(-1, *[1] * (layer._dimensions + 1)) / 2
    magnitude = float_layer(wide.abs())
    float_layer.weight = nn.Parameter((s_w / 2).double().expand_as(layer.weight))
    result: Tensor = of_x + float_layer(wide.abs()) + 2.0**-20 * (magnitude + 10)
    return result.detach() if batch is x else result.detach()[0]


def test_is_close_to_the_float_layer(case: tuple[nn.Module, Any, Tensor]) -> None:
    module, layer, x = case
    y, expected = values(layer, x), values(copy.deepcopy(module).double(), x.double())
    assert y.shape == expected.shape
    assert y.is_contiguous()
    assert torch.all((y.double() - expected).abs() <= bound(layer, x))


def test_memory_formats_and_dtypes(case: tuple[nn.Module, Any, Tensor]) -> None:
    _, layer, x = case
    y = values(layer, x)
    assert torch.equal(values(layer, torch.stack([x, x], -1)[..., 0]), y)
    if x.dim() == 4:
        channels_last = values(layer, x.to(memory_format=torch.channels_last))
        assert torch.equal(channels_last, y)
        assert channels_last.is_contiguous(memory_format=torch.channels_last)
        assert values(layer, x[:0]).shape == (0, *y.shape[1:])
    for dtype in (torch.bfloat16, torch.float16):
        narrow = x.to(dtype)
        assert torch.equal(values(layer, narrow), values(layer, narrow.float()).to(dtype))


def test_each_picture_has_its_own_range_or_all_the_static_one() -> None:
    torch.manual_seed(0)
    module, x = Int8Conv2d.float_example()
    layer = Int8Conv2d.from_float(module)
    assert torch.equal(values(layer, x)[:1], values(layer, x[:1]))
    assert torch.equal(values(layer, torch.cat([x, 100 * x]))[: len(x)], values(layer, x))
    static = Int8Conv2d.from_float(module, x_scale=0.05, x_zero_point=128)
    quantised = (x / 0.05).round().clamp(-128, 127) * 0.05
    expected = values(static.to_float(), quantised)
    torch.testing.assert_close(values(static, x), expected, rtol=0, atol=1e-4)
    assert "static(0.05, 128)" in repr(static)


def test_nan_stays_within_its_picture() -> None:
    module, x = Int8Conv2d.float_example()
    layer = Int8Conv2d.from_float(module)
    x[1, 0, 0, 0] = float("inf")
    y = values(layer, x)
    assert torch.isnan(y[1]).all()
    assert torch.isfinite(y[0]).all()


def test_gradients_are_those_of_the_dequantised_layer(case: tuple[nn.Module, Any, Tensor]) -> None:
    _, layer, x = case
    x.requires_grad_()
    y = layer(x)
    dy = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, dy)
    (expected,) = torch.autograd.grad(layer.to_float()(x), x, dy)
    torch.testing.assert_close(dx, expected, rtol=1e-4, atol=1e-4)
    if layer.bias is not None:
        layer.bias.requires_grad_()
        (db,) = torch.autograd.grad(layer(x), layer.bias, dy)
        kept = dy.dim() - layer._dimensions - 1
        torch.testing.assert_close(db, dy.sum([i for i in range(dy.dim()) if i != kept]))


def test_surface_of_the_float_layer(case: tuple[nn.Module, Any, Tensor]) -> None:
    module, layer, x = case
    assert isinstance(
        layer, nn.Conv2d if x.dim() - layer._dimensions in (1, 2) and layer._dimensions == 2 else nn.Conv1d
    )
    for name in (
        "in_channels",
        "out_channels",
        "groups",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "padding_mode",
    ):
        assert getattr(layer, name) == getattr(module, name)
    assert layer.weight.shape == module.weight.shape
    assert (layer.bias is None) == (module.bias is None)
    assert "weights=int8, activations=dynamic" in repr(layer)
    for write in (lambda: setattr(layer, "weight", layer.weight), layer.reset_parameters):
        with pytest.raises(TersorError, match="read-only"):
            write()
    back = layer.to_float()
    assert type(back) is type(module)
    again = type(layer).from_float(back)
    assert torch.equal(again.canonical_tensors()["weight_q"], layer.canonical_tensors()["weight_q"])


def test_state_copies_and_config(case: tuple[nn.Module, Any, Tensor], tmp_path: Path) -> None:
    module, layer, x = case
    y = values(layer, x)
    assert set(layer.state_dict()) == set(type(layer).expected_tensors(layer.config()))
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    config = json.loads(json.dumps(layer.config()))
    other = type(layer).from_config(config)
    with pytest.raises(TersorError, match="no weights yet"):
        other(x)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(values(other, x), y)
    other.load_state_dict(module.state_dict())
    assert torch.equal(values(other, x), y)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), _through_file(layer)):
        assert torch.equal(values(copied, x), y)
    for bad in (
        {**config, "more": 1},
        {**config, "groups": True},
        {**config, "stride": [0] * layer._dimensions},
        {},
        None,
    ):
        with pytest.raises(ValueError, match="expected"):
            type(layer).from_config(bad)
    state = layer.state_dict()
    state["weight_q"][0] = -128
    with pytest.raises(RuntimeError, match="-128"):
        layer.load_state_dict(state)
    assert torch.equal(values(layer, x), y)


def _through_file(layer: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def test_wrong_input_names_layer_got_and_expected(case: tuple[nn.Module, Any, Tensor]) -> None:
    _, layer, x = case
    layer._tersor_name = "features.0"
    for bad, got in ((x.double(), "float64"), (x.sum(), "[]"), (x.numpy(), "ndarray"), (x.to_sparse(), "sparse")):
        with pytest.raises(TersorError) as caught:
            layer(bad)
        for part in ("features.0", "expected", "got", got):
            assert part in str(caught.value)
    with pytest.raises((TersorError, RuntimeError), match=r"fit|expected|pictures of"):
        layer(x[..., :0])


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Linear(3, 3), "is not an nn.Conv2d"),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), "padding_mode"),
        (nn.Conv2d(3, 3, 3).double(), "float64"),
        (nn.LazyConv2d(3, 3), "no weight"),
        (nn.Conv2d(9000, 1, 3), "65536"),
    ],
)
def test_what_cannot_be_converted_says_why(module: nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Int8Conv2d.from_float(module)


def test_the_op_compiles_exports_and_passes_opcheck() -> None:
    module, x = Int8Conv2d.float_example()
    layer = Int8Conv2d.from_float(module).eval()
    empty = torch.empty(0)
    torch.library.opcheck(GRAPH_S8, (x, layer.packed, empty, 10, 9, 8))
    torch._dynamo.reset()
    with torch.no_grad():
        y = layer(x)
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), y)
        exported = torch.export.export(layer, (x,))
        assert torch.equal(exported.module()(x), y)
    for bad in (
        (x.double(), layer.packed, empty, 10, 9, 8),
        (x[0], layer.packed, empty, 10, 9, 8),
        (x, layer.packed[:-1], empty, 10, 9, 8),
        (x, layer.packed, empty, 10, 9, 9),
        (x[:, :5], layer.packed, empty, 10, 9, 8),
        (x, layer.packed, torch.zeros(3), 10, 9, 8),
    ):
        with pytest.raises(RuntimeError, match=r"expected|got"):
            GRAPH_S8(*bad)


def test_a_block_runs_under_any_cap_and_packs_alike(case: tuple[nn.Module, Any, Tensor]) -> None:
    module, layer, x = case
    y = values(layer, x)
    with kernels.use("scalar"):
        assert torch.equal(values(layer, x), y)
        assert torch.equal(values(type(layer).from_float(module), x), y)


def test_kinds_are_registered() -> None:
    assert REGISTRY["int8_conv2d"] is Int8Conv2d
    assert REGISTRY["int8_graph"] is Int8Graph
    with pytest.raises(ValueError, match=r"not an nn.Conv1d"):
        Int8Conv1d.from_float(nn.Conv2d(1, 1, 1))

"""Int8Linear on a CUDA device: moves there and back, the same numbers, the same state."""

from __future__ import annotations

import copy
import io
import pickle
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tersor.errors import TersorError
from tersor.nn import Int8Linear

pytestmark = pytest.mark.usefixtures("gpu")


def layer_of(smoothed: bool = False, bias: bool = True, **settings: object) -> Int8Linear:
    torch.manual_seed(1)
    scale = torch.rand(70) + 0.1 if smoothed else None
    return Int8Linear.from_float(nn.Linear(70, 33, bias=bias), input_scale=scale, **settings)  # type: ignore[arg-type]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name].cpu(), b[name].cpu()) for name in a)


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_there_and_back(smoothed: bool, bias: bool, dtype: torch.dtype) -> None:
    layer = layer_of(smoothed, bias, activation="gelu").to(dtype)
    x = torch.randn(5, 70).to(dtype)
    with torch.no_grad():
        expected, state = layer(x), layer.state_dict()
        assert layer.to("cuda") is layer
        assert layer.packed.is_cuda
        assert same(layer.state_dict(), state)
        assert torch.equal(layer(x.cuda()).cpu(), expected)
        assert layer.weight.device.type == "cuda"
        layer.to("cpu")
        assert same(layer.state_dict(), state)
        assert torch.equal(layer(x), expected)


def test_the_weight_is_the_same_on_both_devices() -> None:
    layer = layer_of(smoothed=True)
    expected = layer.weight.clone()
    assert torch.equal(layer.cuda().weight.clone().cpu(), expected)


@pytest.mark.parametrize("smoothed", [False, True])
def test_copies_and_pickles_stay_on_the_device(smoothed: bool) -> None:
    layer = layer_of(smoothed).cuda()
    x = torch.randn(4, 70, device="cuda")
    with torch.no_grad():
        expected = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert other.packed.is_cuda
            assert torch.equal(other(x), expected)


def test_state_dicts_of_either_device_load_on_either() -> None:
    source = layer_of()
    buffer = io.BytesIO()
    torch.save(copy.deepcopy(source).cuda().state_dict(), buffer)
    buffer.seek(0)
    x = torch.randn(2, 70)
    with torch.no_grad():
        for state in (source.state_dict(), torch.load(buffer, weights_only=True)):
            for device in ("cpu", "cuda"):
                target = Int8Linear(70, 33).to(device)
                target.load_state_dict(state)
                assert target.packed.device.type == device
                assert torch.equal(target(x.to(device)).cpu(), source(x))


def test_gradients_reach_the_input() -> None:
    layer = layer_of().cuda()
    x = torch.randn(3, 70, device="cuda", requires_grad=True)
    layer(x).sum().backward()
    expected = torch.ones(3, 33, device="cuda") @ layer.weight.clone()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected)


def test_a_tensor_on_the_other_device_is_named() -> None:
    layer = layer_of().cuda()
    with pytest.raises(TersorError, match="expected a dense tensor on cuda:0, got a strided one on cpu"):
        layer(torch.randn(2, 70))
    with pytest.raises(TersorError, match="expected a dense tensor on cpu, got a strided one on cuda:0"):
        layer.cpu()(torch.randn(2, 70, device="cuda"))


def test_a_layer_that_is_too_deep_is_named_and_stays() -> None:
    layer = Int8Linear.from_float(nn.Linear(65537, 2))
    layer._tersor_name = "wide"
    with pytest.raises(TersorError, match=r"'wide' cannot move to cuda.*at most 65536 in_features, got 65537"):
        layer.to("cuda")
    assert layer.packed.device.type == "cpu"
    with torch.no_grad():
        assert layer(torch.randn(1, 65537)).shape == (1, 2)


def test_cuda_graphs_and_side_streams(gpu: ModuleType) -> None:
    layer, x = layer_of().cuda(), torch.randn(4, 70, device="cuda")
    with torch.no_grad():
        expected = layer(x)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            aside = layer(x)
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(aside, expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        for _ in range(3):
            x.copy_(torch.randn(4, 70))
            y.fill_(float("nan"))
            graph.replay()
            assert torch.equal(y, layer(x))


def test_many_calls_share_the_workspace() -> None:
    """Deep products of few rows split their depth: the counters must be zero again after each."""
    rng = np.random.default_rng(0)
    layers = [Int8Linear.from_float(nn.Linear(k, n)).cuda() for k, n in [(4096, 64), (8192, 128), (2048, 512)]]
    references = [copy.deepcopy(layer).cpu() for layer in layers]
    with torch.no_grad():
        for _ in range(20):
            i, m = int(rng.integers(3)), int(rng.integers(1, 40))
            x = torch.randn(m, layers[i].in_features)
            assert torch.equal(layers[i](x.cuda()).cpu(), references[i](x))


def test_compile() -> None:
    layer, x = layer_of(activation="silu").cuda(), torch.randn(4, 70, device="cuda")
    with torch.no_grad():
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))

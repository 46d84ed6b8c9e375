"""The short way through Int8Linear: the same bits as the torch op, and out of the way of everything else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from tersor.nn import Int8Linear
from tersor.nn.eager import WORKS, eager, never
from tersor.nn.packed_linear import PackedLinear
from tersor.nn.registry import REGISTRY
from tersor.ops import ACTIVATIONS

pytestmark = pytest.mark.skipif(not WORKS, reason="this torch has no DLPack exchange table")
eager_linear = eager("linear_s8")
LINEAR_LAYERS = {kind: cls for kind, cls in REGISTRY.items() if issubclass(cls, PackedLinear)}


def layer(k: int = 24, n: int = 40, **settings: Any) -> Int8Linear:
    torch.manual_seed(0)
    return Int8Linear.from_float(nn.Linear(k, n, bias=settings.pop("bias", True)), **settings)


@pytest.fixture
def by_op(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module, Tensor], Tensor]:
    """The layer's output without the short way."""

    def run(module: nn.Module, x: Tensor) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(type(module), "_eager", staticmethod(never))
            return module(x)  # type: ignore[no-any-return]

    return run


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


X = {
    "one row": lambda: torch.randn(1, 24),
    "vector": lambda: torch.randn(24),
    "rows": lambda: torch.randn(7, 24),
    "more than one thread takes": lambda: torch.randn(3000, 24),
    "dims": lambda: torch.randn(2, 3, 5, 24),
    "row stride": lambda: torch.randn(6, 30)[:, :24],
    "every second row": lambda: torch.randn(6, 24)[::2],
    "expanded": lambda: torch.randn(1, 24).expand(5, 24),
    "bf16": lambda: torch.randn(3, 24).bfloat16(),
    "f16": lambda: torch.randn(3, 24).half(),
    "nan": lambda: torch.randn(3, 24).index_fill_(0, torch.tensor([1]), float("nan")),
}


@pytest.mark.parametrize("name", X)
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_bits_as_the_op(name: str, bias: bool, by_op: Callable[[nn.Module, Tensor], Tensor]) -> None:
    x = X[name]()
    for settings in ({}, {"activation": "gelu"}, {"x_scale": 0.02, "x_zero_point": 120}):
        module = layer(bias=bias, **settings)
        y = eager_linear(module, x)
        assert y is not None
        expected = by_op(module, x)
        assert y.dtype is expected.dtype
        assert y.shape == expected.shape
        assert y.stride() == expected.stride()
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.nan_to_num(), expected.nan_to_num())
        assert not y.requires_grad
        assert y._version == 0


@pytest.mark.parametrize("kind", LINEAR_LAYERS)
@pytest.mark.parametrize("rows", [1, 5, 3000])
def test_the_same_bits_as_the_op_for_each_kind(
    kind: str, rows: int, by_op: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    cls: Any = LINEAR_LAYERS[kind]
    module, x = cls.float_example()
    converted, x = cls.from_float(module), torch.randn(rows, x.shape[-1])
    y = converted._eager(converted, x)
    assert y is not None
    assert torch.equal(y, by_op(converted, x))
    assert torch.equal(y, converted(x))


def test_weights_of_another_kind_take_the_op() -> None:
    module, x = layer(), torch.randn(2, 24)
    for cls in LINEAR_LAYERS.values():
        if cls._op_name != "linear_s8":
            assert cls._eager(module, x) is None


REFUSED = {
    "float64": lambda: torch.randn(2, 24).double(),
    "a scalar": lambda: torch.tensor(1.0),
    "another width": lambda: torch.randn(2, 23),
    "no rows": lambda: torch.randn(0, 24),
    "columns apart": lambda: torch.randn(24, 4).T,
    "lazily negated": lambda: torch._neg_view(torch.randn(2, 24)),
    "meta": lambda: torch.randn(2, 24, device="meta"),
    "sparse": lambda: torch.randn(2, 24).to_sparse(),
    "needs a gradient": lambda: torch.randn(2, 24, requires_grad=True),
    "a subclass": lambda: torch.randn(2, 24).as_subclass(type("Mine", (Tensor,), {})),
    "no tensor": lambda: [1.0] * 24,
}


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_takes_the_op(name: str) -> None:
    assert eager_linear(layer(), REFUSED[name]()) is None


def test_a_lazily_negated_input_and_bias_are_not_taken_as_they_lie() -> None:
    module, x = layer(), torch.randn(2, 24)
    assert torch.equal(module(torch._neg_view(x)), module(-x))
    with torch.no_grad():
        module.bias = nn.Parameter(torch._neg_view(module.bias.detach()), requires_grad=False)
    assert eager_linear(module, x) is None


class _Count(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += "linear_s8" in str(func)
        return func(*args, **(kwargs or {}))


def test_modes_tracers_and_profilers_see_the_op() -> None:
    module, x = layer(), torch.randn(2, 24)
    with _Count() as count:
        module(x)
    assert count.calls == 1
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        module(x)
    assert any("linear_s8" in event.key for event in profile.key_averages())
    traced = torch.jit.trace(module, (x,), check_trace=False)
    other = torch.randn(2, 24)
    assert torch.equal(traced(other), module(other))
    assert not torch.equal(traced(other), module(x))


def test_functorch_and_forward_ad_are_left_to_the_op() -> None:
    module, x = layer(), torch.randn(2, 24)
    seen: list[object] = []

    def probe(v: Tensor) -> Tensor:
        seen.append(eager_linear(module, v))
        return v.sum()

    torch.vmap(probe)(x)
    torch.func.grad(probe)(x)
    torch.func.functionalize(probe)(x)
    with forward_ad.dual_level():
        seen.append(eager_linear(module, forward_ad.make_dual(x, torch.ones_like(x))))
    assert seen == [None] * 4


def test_a_gradient_for_the_bias_is_not_lost() -> None:
    module = layer()
    module.bias.requires_grad_(True)
    with torch.enable_grad():
        module(torch.randn(2, 24)).sum().backward()
    assert torch.equal(module.bias.grad, torch.full((40,), 2.0))


def test_a_layer_without_weights_or_with_foreign_attributes_takes_the_op() -> None:
    empty = Int8Linear(24, 40)
    assert eager_linear(empty, torch.randn(1, 24)) is None
    for name, value in {"out_features": 41, "x_scale": "x", "_activation_code": 99, "x_zero_point": None}.items():
        module = layer()
        module.__dict__[name] = value
        assert eager_linear(module, torch.randn(1, 24)) is None
    module = layer()
    module._buffers["packed"] = module.packed[:-8].clone()
    assert eager_linear(module, torch.randn(1, 24)) is None
    assert eager_linear(nn.Linear(24, 40), torch.randn(1, 24)) is None


def test_the_output_is_an_ordinary_tensor() -> None:
    y = layer()(torch.randn(2, 24))
    y.add_(1).mul_(2)
    assert y.share_memory_().is_shared()
    with torch.inference_mode():
        assert layer()(torch.randn(2, 24)).is_inference()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compile_and_export_see_the_op(activation: str) -> None:
    module, x = layer(activation=activation).eval(), torch.randn(2, 24)
    exported = torch.export.export(module, (x,))
    assert "linear_s8" in str(exported.graph)
    assert torch.equal(exported.module()(x), module(x))


def test_weights_may_be_loaded_while_another_thread_computes() -> None:
    module, other, x = layer(512, 1024), layer(512, 1024, bias=False), torch.randn(4, 512)
    other.packed.data.copy_(Int8Linear.from_float(nn.Linear(512, 1024)).packed)
    blocks, expected = (module.packed, other.packed), []
    for block in blocks:
        module._buffers["packed"] = block
        expected.append(module(x))
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            for block in blocks:
                module._buffers["packed"] = block.clone()  # the one before is freed, unless somebody holds it

    loader = threading.Thread(target=load)
    loader.start()
    try:
        for _ in range(2000):
            y = eager_linear(module, x)
            assert y is not None
            assert any(torch.equal(y, one) for one in expected)
    finally:
        stop.set()
        loader.join()

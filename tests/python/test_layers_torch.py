"""What every replacement layer promises to the rest of torch: copies, processes, compilers, gradients, shapes."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_case import CASES, LayerCase, make_case, same, values
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tersor import kernels
from tersor.errors import TersorError
from tersor.nn import PackedLayer


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> LayerCase:
    return make_case(request.param)


def test_copies_and_pickles(case: LayerCase) -> None:
    _, _, layer, x, _ = case
    layer.weight.sum()  # a computed weight must not travel along
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(stream, weights_only=False),
        copy.copy(layer),
    ):
        assert same(other, layer, x)
        assert other.config() == layer.config()
    clone = copy.deepcopy(layer)
    assert clone.packed.data_ptr() != layer.packed.data_ptr()
    pair = copy.deepcopy(nn.ModuleList([layer, layer]))
    assert pair[0] is pair[1]
    layer.note = [layer]
    clone = copy.deepcopy(layer)
    assert clone.note[0] is clone


def test_pickle_and_packed_bytes_cross_instruction_sets(case: LayerCase, tmp_path: Path) -> None:
    cls, _, layer, x, _ = case
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    torch.save(x, tmp_path / "x.pt")
    script = (
        "import pickle, sys, torch, tersor.nn\n"
        "where, kind, config = sys.argv[1:]\n"
        "layer = tersor.nn.REGISTRY[kind].from_config(__import__('json').loads(config))\n"
        "layer.load_state_dict(torch.load(where + '/state.pt'))\n"
        "with torch.no_grad(): torch.save(layer(torch.load(where + '/x.pt')), where + '/y.pt')\n"
        "pickle.dump(layer, open(where + '/layer.pkl', 'wb'))\n"
        "print(layer.kernel)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), cls.kind, json.dumps(layer.config())]
    done = subprocess.run(
        command, env={**os.environ, "TERSOR_ISA": "scalar"}, check=True, capture_output=True, text=True
    )
    assert "scalar" in done.stdout
    loaded = pickle.loads((tmp_path / "layer.pkl").read_bytes())
    assert loaded.kernel == layer.kernel
    assert torch.equal(values(loaded, x), torch.load(tmp_path / "y.pt"))
    with kernels.use("scalar"):  # packed before, still runs, and its bytes still unpack
        assert same(layer, loaded, x)
        for one, other in zip(layer.canonical_tensors().values(), loaded.canonical_tensors().values(), strict=True):
            assert torch.equal(one, other)
        assert same(copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), x)


def _child(layer: PackedLayer, x: Tensor, results: Any) -> None:
    results.put((values(layer, x).numpy(), layer.packed.is_shared()))


def test_spawn_hands_over_shared_bytes(case: LayerCase) -> None:
    _, _, layer, x, _ = case
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_child, args=(layer, x, results))
    process.start()
    y, shared = results.get(timeout=120)
    process.join(60)
    assert process.exitcode == 0
    assert shared
    assert torch.equal(torch.from_numpy(y), values(layer, x))


def test_share_memory(case: LayerCase) -> None:
    _, _, layer, x, _ = case
    before = values(layer, x)
    assert layer.share_memory().packed.is_shared()
    assert torch.equal(values(layer, x), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_follow_the_input(case: LayerCase, dtype: torch.dtype) -> None:
    _, _, layer, x, _ = case
    layer.to(dtype)
    assert layer.weight.dtype == layer.bias.dtype == layer.dtype == dtype
    assert layer.config()["dtype"] == str(dtype).removeprefix("torch.")
    for x_dtype in (torch.float32, torch.bfloat16, torch.float16):
        narrow = x.to(x_dtype)
        y = values(layer, narrow)
        assert y.dtype == x_dtype
        assert torch.equal(y, values(layer, narrow.float()).to(x_dtype))


def test_moves_that_cannot_work_are_refused_and_change_nothing(case: LayerCase) -> None:
    _, _, layer, x, _ = case
    before = values(layer, x)
    with pytest.raises(TypeError, match="float64"):
        layer.double()
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError), match="CUDA"):
            layer.to("cuda")
    assert torch.equal(values(layer, x), before)
    assert layer.type(torch.float16).packed.dtype == torch.uint8


def test_meta_to_empty_and_assign(case: LayerCase) -> None:
    cls, _, layer, x, _ = case
    state = layer.state_dict()
    settings = {key: getattr(layer, key) for key in ("smoothed", "pattern", "rank") if hasattr(layer, key)}
    with torch.device("meta"):
        made = cls(layer.in_features, layer.out_features, **settings)
    for empty in (made, copy.deepcopy(layer).to("meta")):
        assert all(t.is_meta for t in [*empty.parameters(), *empty.buffers(), *empty.state_dict().values()])
        assert empty.weight.is_meta
        assigned = copy.deepcopy(empty)
        assigned.load_state_dict(state, assign=True)
        assert same(assigned, layer, x)
        with pytest.warns(UserWarning, match="meta"):
            empty.load_state_dict(layer.state_dict())  # as for every layer on meta: nothing happens
        assert empty.packed.is_meta
        empty.to_empty(device="cpu")
        with pytest.raises(TersorError, match="no weights yet"):
            empty(x)
        empty.load_state_dict(state)
        assert same(empty, layer, x)
    emptied = copy.deepcopy(layer)
    emptied._apply(lambda t: torch.full_like(t, 127))  # to_empty, with garbage that cannot be the old bytes by chance
    with pytest.raises(TersorError, match="no weights yet"):
        emptied(x)


def test_hooks_run(case: LayerCase) -> None:
    _, _, layer, x, _ = case
    seen: list[str] = []
    layer.register_forward_pre_hook(lambda m, args: seen.append("pre"))
    layer.register_forward_hook(lambda m, args, y: seen.append("post"))
    layer.register_full_backward_hook(lambda m, gx, gy: seen.append("backward"))
    layer(x.clone().requires_grad_()).sum().backward()
    assert seen == ["pre", "post", "backward"]


def test_gradient_flows_to_the_input_only(case: LayerCase) -> None:
    _, _, layer, x, _ = case
    assert values(layer, x).grad_fn is None
    assert layer(x).grad_fn is None
    x = x.clone().requires_grad_()
    dy = torch.randn(*x.shape[:-1], layer.out_features)
    layer(x).backward(dy)
    reference = x.detach().clone().requires_grad_()
    layer.to_float()(reference).backward(dy)
    torch.testing.assert_close(x.grad, reference.grad)
    assert layer.bias.grad is None


def test_compile_fullgraph(case: LayerCase) -> None:
    _, _, layer, x, _ = case

    class Probing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.to(self.layer.weight.dtype))

    compiled = torch.compile(Probing(), fullgraph=True)
    assert same(compiled, layer, x)
    assert torch.equal(values(compiled, x[:1]), values(layer, x[:1]))
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled(one).sum().backward()
    layer(other).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)


def test_export(case: LayerCase) -> None:
    _, _, layer, x, _ = case
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    assert any("tersor" in str(node.target) for node in program.graph.nodes)
    larger = torch.cat([x, x * 2, x])
    assert same(program.module(), layer, larger)
    assert isinstance(layer.packed, Tensor)
    assert same(layer, copy.deepcopy(layer), x)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "tersor":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def test_opcheck(case: LayerCase) -> None:
    _, _, layer, x, _ = case
    with _Recorder() as recorder:
        layer(x)
        layer.weight.sum()
    assert len(recorder.calls) == 2
    for op, args in recorder.calls:
        torch.library.opcheck(op, args)


def test_functional_call_and_tied_parameters(case: LayerCase) -> None:
    _, _, layer, x, _ = case
    moved = torch.func.functional_call(layer, {"bias": layer.bias + 1}, (x,))
    torch.testing.assert_close(moved, values(layer, x) + 1)
    other = copy.deepcopy(layer)
    other.bias = layer.bias
    for pair in (nn.ModuleList([layer, other]), copy.deepcopy(nn.ModuleList([layer, other])).bfloat16()):
        assert pair[0].bias is pair[1].bias
        assert len(list(pair.parameters())) == 1
    with torch.no_grad():
        layer.bias.add_(1)
    assert torch.equal(values(layer, x), moved)
    assert same(layer, other, x)


def test_any_shape_and_stride(case: LayerCase) -> None:
    _, _, layer, x, _ = case
    rows = x.reshape(-1, x.shape[-1])
    expected = torch.stack([values(layer, row) for row in rows])
    assert torch.equal(values(layer, rows), expected)
    assert torch.equal(values(layer, rows.t().contiguous().t()), expected)
    assert torch.equal(values(layer, rows[::2]), expected[::2])
    assert torch.equal(values(layer, rows[:1].expand(5, -1)), expected[:1].expand(5, -1))
    assert torch.equal(values(layer, x.transpose(0, 1)), values(layer, x).transpose(0, 1))
    assert values(layer, rows[:0]).shape == (0, layer.out_features)
    assert values(layer, x[:, :0]).shape == (x.shape[0], 0, layer.out_features)


def test_many_threads_call_one_layer(case: LayerCase) -> None:
    _, _, layer, x, _ = case
    inputs = [x * (i + 1) for i in range(8)]
    expected = [values(layer, one) for one in inputs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            for got, want in zip(pool.map(lambda one: values(layer, one), inputs), expected, strict=True):
                assert torch.equal(got, want)

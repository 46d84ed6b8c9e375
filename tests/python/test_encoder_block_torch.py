"""EncoderBlock within torch: the float path, gradients, compilers, processes, instruction sets."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_case import CASES, KEEP, inputs, make_float, mask_for, run, same, settings_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tersor import kernels
from tersor.nn import EncoderBlock


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, EncoderBlock, dict[str, Any]]:
    module = make_float(request.param)
    settings = settings_of(request.param, module)
    return module, EncoderBlock.from_float(module, **settings), settings


def float_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    before = EncoderBlock.float_forward

    def note(self: EncoderBlock, *args: Any, **kwargs: Any) -> Any:
        calls.append(type(self).__name__)
        return before(self, *args, **kwargs)

    monkeypatch.setattr(EncoderBlock, "float_forward", note)
    return calls


def test_what_the_op_has_no_form_for_is_computed_in_float(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, block, _ = pair
    calls = float_calls(monkeypatch)
    x = inputs(block)
    y = run(block, x, **mask_for(block))
    assert not calls
    handle = next(part for part in block.modules() if part is not block).register_forward_hook(lambda *_: None)
    hooked = run(block, x, **mask_for(block))
    assert len(calls) == 1
    assert float((hooked - y)[KEEP].norm() / y[KEEP].norm()) < 0.02
    handle.remove()
    assert torch.equal(run(block, x, **mask_for(block)), y)
    assert len(calls) == 1
    causal = torch.ones(6, 6, dtype=torch.bool).tril()
    name = "src_mask" if block._frame.family.name == "torch" else next(iter(mask_for(block)))
    mask = {name: ~causal if name == "src_mask" else causal[None, None].expand(3, 1, 6, 6)}
    expected = run(module, x, **mask)
    assert float((run(block, x, **mask) - expected).norm() / expected.norm()) < 0.05
    assert len(calls) == 2
    if block._frame.family.has_dropout:
        block.train()
        run(block, x)
        assert len(calls) == 3


def test_gradients_flow_through_the_float_path(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, block, _ = pair
    calls = float_calls(monkeypatch)
    x = inputs(block).requires_grad_()
    mask = mask_for(block)
    y = block(x, **mask)
    assert not calls
    assert torch.equal(y, run(block, x.detach(), **mask))
    dy = torch.randn(y.shape)
    y.backward(dy)
    assert len(calls) == 1
    other = x.detach().clone().requires_grad_()
    (block.to_float()(other, **mask) * KEEP[..., None]).backward(dy)
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-5)
    seen: list[str] = []
    block.register_full_backward_hook(lambda *_: seen.append("backward"))
    block(x, **mask).sum().backward()
    assert seen == ["backward"]


def test_compile_and_export(monkeypatch: pytest.MonkeyPatch) -> None:
    block = EncoderBlock.from_float(make_float("bert"))
    x = inputs(block)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True)
    assert torch.equal(run(compiled, x), run(block, x))
    for mask in (KEEP[:, None, None].expand(-1, 1, 6, -1), torch.ones(6, 6, dtype=torch.bool).tril()[None, None]):
        wide = mask.expand(3, 1, 6, 6).contiguous()
        expected = run(block, x, attention_mask=wide)
        torch.testing.assert_close(run(compiled, x, attention_mask=wide), expected, rtol=1e-4, atol=1e-4)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled(one).sum().backward()
    block(other).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("tokens", min=2, max=64)}
    with torch.no_grad():
        program = torch.export.export(block, (x,), dynamic_shapes={"args": (sizes,)})
    assert any("encoder_block" in str(node.target) for node in program.graph.nodes)
    longer = torch.cat([x, x * 2], 1)
    assert torch.equal(program.module()(longer), run(block, longer))


class Recorder(TorchDispatchMode):
    """Keeps the calls of tersor's ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "tersor":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def test_opcheck() -> None:
    block = EncoderBlock.from_float(make_float("plain"))
    x = inputs(block)
    with Recorder() as recorder:
        run(block, x, mask=KEEP)
        block.query.weight.sum()
        block.norm1.weight.sum()
    assert len(recorder.calls) >= 3
    for op, args in recorder.calls:
        torch.library.opcheck(op, args)
    torch.library.opcheck(torch.ops.tersor.encoder_block_masked.default, (x, KEEP, None, block.packed, True))


def test_packed_bytes_and_pickles_cross_instruction_sets(tmp_path: Path) -> None:
    block = EncoderBlock.from_float(
        make_float("sparse smoothed"), **settings_of("sparse smoothed", make_float("plain"))
    )
    x = inputs(block)
    torch.save({"state": block.state_dict(), "x": x}, tmp_path / "in.pt")
    script = (
        "import json, pickle, sys, torch, tersor.nn\n"
        "block = tersor.nn.EncoderBlock.from_config(json.loads(sys.argv[2])).eval()\n"
        "given = torch.load(sys.argv[1] + '/in.pt')\n"
        "block.load_state_dict(given['state'])\n"
        "with torch.no_grad(): torch.save(block(given['x']), sys.argv[1] + '/y.pt')\n"
        "pickle.dump(block, open(sys.argv[1] + '/block.pkl', 'wb'))\n"
        "print(block.kernel)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), json.dumps(block.config())]
    done = subprocess.run(
        command, env={**os.environ, "TERSOR_ISA": "scalar"}, check=True, capture_output=True, text=True
    )
    assert "scalar" in done.stdout
    loaded = pickle.loads((tmp_path / "block.pkl").read_bytes())
    assert loaded.kernel == block.kernel
    assert torch.equal(run(loaded, x), torch.load(tmp_path / "y.pt"))
    with kernels.use("scalar"):
        assert same(block, loaded)


def _child(block: EncoderBlock, x: Tensor, results: Any) -> None:
    results.put((run(block, x).numpy(), block.packed.is_shared()))


def test_spawn_hands_over_shared_bytes() -> None:
    block = EncoderBlock.from_float(make_float("plain"))
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_child, args=(block, inputs(block), results))
    process.start()
    y, shared = results.get(timeout=120)
    process.join(60)
    assert process.exitcode == 0
    assert shared
    assert torch.equal(torch.from_numpy(y), run(block, inputs(block)))

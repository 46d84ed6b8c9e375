"""EncoderBlock as a layer: what every replacement layer promises, for float blocks of several families."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_models import blocks_of, make_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tersor import kernels
from tersor.encoder.plain import PlainBlock
from tersor.encoder.probe import float_weights, shape_of
from tersor.encoder.reference import encoder_block, layers_of, padded_scores
from tersor.errors import TersorError
from tersor.nn import REGISTRY, EncoderBlock

CASES = ("plain", "plain pre-norm", "sparse smoothed", "bert", "distilbert", "vit", "bart", "torch", "torch pre-norm")
KEEP = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] + [False] * 5])


def make_float(case: str) -> nn.Module:
    torch.manual_seed(1)
    if case.startswith(("plain", "sparse")):
        block = PlainBlock(24, 3, 40, head_dim=16 if case == "plain" else None, norm_first=case.endswith("pre-norm"))
        for parameter in block.parameters():
            nn.init.normal_(parameter, 0.3, 0.3) if parameter.dim() == 1 else nn.init.normal_(parameter, std=0.3)
        return block.eval()
    model = make_model(case)
    block: nn.Module = model.get_submodule(blocks_of(model)[0])
    return block


def settings_of(case: str, module: Any) -> dict[str, Any]:
    if case != "sparse smoothed":
        return {}
    for layer in (module.query, module.key, module.value, module.down):
        with torch.no_grad():
            layer.weight[
                torch.rand(layer.weight.shape[0], layer.weight.shape[1] // 4).repeat_interleave(4, 1) < 0.7
            ] = 0
    scales = {"up": torch.rand(24) + 0.1, "qkv": torch.rand(24) + 0.1}
    return {"patterns": {"qkv": "1x4", "down": "unstructured"}, "input_scales": scales}


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, EncoderBlock, dict[str, Any]]:
    module = make_float(request.param)
    settings = settings_of(request.param, module)
    return module, EncoderBlock.from_float(module, **settings), settings


def inputs(block: EncoderBlock) -> Tensor:
    return torch.randn((3, 6, block.config()["hidden"]), generator=torch.Generator().manual_seed(2))


def mask_for(block: EncoderBlock, keep: Tensor = KEEP) -> dict[str, Tensor]:
    """The padding as the float block wants it."""
    family = block._frame.family
    names = block._frame.names
    name = next(name for name in family.mask_names if name in names)
    if not family.true_is_kept:
        return {name: ~keep}
    return {name: keep[:, None, None].expand(-1, 1, keep.shape[1], -1).contiguous()}


def run(block: nn.Module, x: Tensor, **mask: Tensor) -> Tensor:
    needed = {} if mask or not isinstance(block, EncoderBlock) or block._frame.family.name != "bart" else {
        "attention_mask": None
    }  # fmt: skip
    with torch.no_grad():
        y: Tensor = block(x, **mask, **needed)
    return y


def same(one: nn.Module, other: nn.Module) -> bool:
    x = inputs(other)
    return torch.equal(run(one, x), run(other, x))


def test_is_the_float_block_with_rounding(pair: Any) -> None:
    """Against the definition with the weights that the block holds; 8 bits of every input are what remains."""
    module, block, _ = pair
    x = inputs(block)
    found = block._frame.anatomy
    back = block.to_float()
    layers = layers_of(float_weights(back, found), *(getattr(shape_of(back, found), key) for key in ("eps1", "eps2")))
    for keep in (None, KEEP):
        scores = None if keep is None else padded_scores(keep)
        expected = encoder_block(x, layers, shape_of(back, found), scores).detach()
        y = run(block, x, **({} if keep is None else mask_for(block, keep)))
        kept = torch.ones_like(KEEP) if keep is None else keep
        assert float((y - expected)[kept].norm() / expected[kept].norm()) < 0.02
        assert not y[~kept].any()
    float_y = run(module, x, **mask_for(block))
    assert float((y - float_y)[KEEP].norm() / float_y[KEEP].norm()) < 0.05


def test_padding_is_as_if_it_were_not_there(pair: Any) -> None:
    _, block, _ = pair
    x = inputs(block)
    y = run(block, x, **mask_for(block))
    for index, count in enumerate(KEEP.sum(1).tolist()):
        assert torch.equal(run(block, x[index : index + 1, :count]), y[index : index + 1, :count])
    noisy = x.masked_fill(~KEEP[..., None], 1e9)
    assert torch.equal(run(block, noisy, **mask_for(block)), y)
    nothing = KEEP.clone()
    nothing[1] = False
    z = run(block, x, **mask_for(block, nothing))
    assert not z[1].any()
    assert torch.equal(z[[0, 2]], y[[0, 2]])


def test_the_surface_is_that_of_the_float_block(pair: Any) -> None:
    module, block, _ = pair
    assert isinstance(block, type(module))
    assert isinstance(block, EncoderBlock)
    assert [name for name, _ in block.named_modules()] == [name for name, _ in module.named_modules()]
    assert block.training is module.training is False
    for name, parameter in module.named_parameters():
        owner, _, key = name.rpartition(".")
        read = getattr(block.get_submodule(owner), key)
        assert read.shape == parameter.shape
        assert float((read - parameter.detach()).norm()) <= 0.02 * float(parameter.detach().norm())
    assert not list(block.parameters())
    assert [name for name, _ in block.named_buffers()] == ["packed"]
    assert "int8" in repr(block)
    assert block.kernel


def test_to_float_and_back_keeps_the_integers(pair: Any) -> None:
    module, block, settings = pair
    back = block.to_float()
    assert type(back) is type(module)
    assert [(n, type(m)) for n, m in back.named_modules()] == [(n, type(m)) for n, m in module.named_modules()]
    assert {name: p.shape for name, p in back.named_parameters()} == {n: p.shape for n, p in module.named_parameters()}
    again = EncoderBlock.from_float(back, **settings)
    one, other = again.canonical_tensors(), block.canonical_tensors()
    assert one.keys() == other.keys()
    for key, value in one.items():
        if key.endswith("_scale"):
            torch.testing.assert_close(value, other[key], rtol=1e-6, atol=0)
        else:
            assert torch.equal(value, other[key])


def test_state_dicts_configs_and_pickles(pair: Any, tmp_path: Path) -> None:
    _, block, _ = pair
    state = block.state_dict()
    assert set(state) == set(EncoderBlock.expected_tensors(block.config()))
    torch.save(state, tmp_path / "state.pt")
    other = EncoderBlock.from_config(json.loads(json.dumps(block.config()))).eval()
    assert other.config() == block.config()
    assert set(other.state_dict()) == set(state)
    with pytest.raises(TersorError, match="no weights yet"):
        other(inputs(block))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    assert same(other, block)
    filled = EncoderBlock.from_config(block.config()).eval()
    filled.fill(block.canonical_tensors())
    assert same(filled, block)
    stream = io.BytesIO()
    torch.save(block, stream)
    stream.seek(0)
    clone = copy.deepcopy(block)
    assert clone.packed.data_ptr() != block.packed.data_ptr()
    for copied in (clone, copy.copy(block), pickle.loads(pickle.dumps(block)), torch.load(stream, weights_only=False)):
        assert type(copied) is type(block)
        assert same(copied, block)
        assert all(part._block is copied for part in copied.modules() if hasattr(part, "_block")) or copied.packed is (
            block.packed
        )


def test_bad_tensors_and_configs_are_refused() -> None:
    block = EncoderBlock.from_float(make_float("plain"))
    before = run(block, inputs(block))
    for key, change in (
        ("qkv.weight_q", lambda t: t.to(torch.int16)),
        ("qkv.weight_q", lambda t: torch.full_like(t, -128)),
        ("out.weight_scale", lambda t: t * 0),
        ("norm1.weight", lambda t: t[:-1]),
        ("up.bias", lambda t: t * torch.nan),
        ("norm2.bias", lambda t: t.double()),
    ):
        state = block.state_dict()
        state[key] = change(state[key].clone())
        with pytest.raises(RuntimeError, match=f"{key.split('.')[1][-5:]}|-128"):
            block.load_state_dict(state)
        assert torch.equal(run(block, inputs(block)), before)
    state = block.state_dict()
    del state["down.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*down\.bias"):
        block.load_state_dict(state)
    config = block.config()
    for bad in (
        {**config, "heads": 0},
        {**config, "heads": True},
        {**config, "activation": "elu"},
        {**config, "norm_first": 1},
        {**config, "eps1": float("nan")},
        {**config, "more": 1},
        {**config, "qkv": {**config["qkv"], "kept": 5}},
        {**config, "qkv": {**config["qkv"], "pattern": "1x999"}},
        {**config, "out": None},
        {},
        None,
    ):
        with pytest.raises(ValueError, match="expected"):
            EncoderBlock.from_config(bad)


def test_wrong_inputs_say_what_is_expected() -> None:
    block = EncoderBlock.from_float(make_float("plain"))
    block._tersor_name = "encoder.0"
    x = inputs(block)
    for bad, got in (
        (x[..., :-1], "[3, 6, 23]"),
        (x.double(), "float64"),
        (x.to_sparse(), "sparse"),
        (x.numpy(), "nda"),
    ):
        with pytest.raises(TersorError) as caught:
            block(bad)
        for part in ("encoder.0", "expected", "got", got):
            assert part in str(caught.value)
    for module, message in (
        (nn.Linear(3, 3), "no encoder block"),
        (block, "accelerated already"),
        (PlainBlock(24, 3, 40).double(), "float64"),
        (PlainBlock(24, 3, 40).to("meta"), "meta"),
    ):
        assert message in str(EncoderBlock.reason_against(module))
        with pytest.raises(ValueError, match=message):
            EncoderBlock.from_float(module)
    broken = PlainBlock(24, 3, 40)
    nn.init.constant_(broken.up.weight, torch.inf)
    with pytest.raises(ValueError, match="NaN or infinity"):
        EncoderBlock.from_float(broken)
    with pytest.raises(ValueError, match="unknown product"):
        EncoderBlock.from_float(PlainBlock(24, 3, 40), patterns={"q": "1x4"})


def test_operations_are_those_of_the_definition() -> None:
    block = EncoderBlock.from_float(PlainBlock(24, 3, 40))
    linear = 2 * 3 * 5 * (4 * 24 * 24 + 2 * 24 * 40)
    assert block.operations(3, 5) == linear + 3 * 2 * (2 * 5 * 5 * 24)
    sparse = EncoderBlock.from_float(PlainBlock(24, 3, 40), patterns={"up": "1x4"})
    assert sparse.operations(3, 5) == block.operations(3, 5)  # nothing of it is 0


def test_registry_and_example() -> None:
    assert REGISTRY["encoder_block"] is EncoderBlock
    module, x = EncoderBlock.float_example()
    assert EncoderBlock.from_float(module)(x).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes_follow_the_input(pair: Any, dtype: torch.dtype) -> None:
    _, block, _ = pair
    block.to(dtype)
    assert block.config()["dtype"] == str(dtype).removeprefix("torch.")
    x = inputs(block).to(dtype)
    y = run(block, x)
    assert y.dtype == dtype
    assert torch.equal(y, run(block, x.float()).to(dtype))
    assert next(block.to_float().parameters()).dtype == dtype


def test_moves_that_cannot_work_change_nothing() -> None:
    block = EncoderBlock.from_float(make_float("plain"))
    before = run(block, inputs(block))
    with pytest.raises(TypeError, match="float64"):
        block.double()
    assert torch.equal(run(block, inputs(block)), before)
    empty = copy.deepcopy(block).to("meta")
    assert empty.packed.is_meta
    empty.to_empty(device="cpu")
    with pytest.raises(TersorError, match="no weights yet"):
        empty(inputs(block))
    empty.load_state_dict(block.state_dict())
    assert same(empty, block)
    assert block.share_memory().packed.is_shared()


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

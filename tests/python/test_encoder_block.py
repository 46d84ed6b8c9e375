"""EncoderBlock as a layer: what every replacement layer promises, for float blocks of several families."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_case import CASES, KEEP, inputs, make_float, mask_for, run, same, settings_of
from torch import nn

from tersor.encoder.plain import PlainBlock
from tersor.encoder.probe import float_weights, shape_of
from tersor.encoder.reference import encoder_block, layers_of, padded_scores
from tersor.errors import TersorError
from tersor.nn import REGISTRY, EncoderBlock


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, EncoderBlock, dict[str, Any]]:
    module = make_float(request.param)
    settings = settings_of(request.param, module)
    return module, EncoderBlock.from_float(module, **settings), settings


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
        {**config, "qkv": {**config["qkv"], "ranks": [4]}},
        {**config, "out": {**config["out"], "ranks": [True]}},
        {**config, "out": {**config["out"], "ranks": [25]}},
        {**config, "out": {**config["out"], "ranks": [4], "pattern": "1x4"}},
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
    with pytest.raises(ValueError, match="no pattern"):
        EncoderBlock.from_float(make_float("low rank"), patterns={"up": "1x4"})
    with pytest.raises(ValueError, match="unknown product"):
        EncoderBlock.from_float(PlainBlock(24, 3, 40), patterns={"q": "1x4"})


def test_operations_are_those_of_the_definition() -> None:
    block = EncoderBlock.from_float(PlainBlock(24, 3, 40))
    linear = 2 * 3 * 5 * (4 * 24 * 24 + 2 * 24 * 40)
    assert block.operations(3, 5) == linear + 3 * 2 * (2 * 5 * 5 * 24)
    sparse = EncoderBlock.from_float(PlainBlock(24, 3, 40), patterns={"up": "1x4"})
    assert sparse.operations(3, 5) == block.operations(3, 5)  # nothing of it is 0
    thin = EncoderBlock.from_float(make_float("low rank"))
    weights = 14 * (72 + 24) + 24 * (24 + 24) + 8 * (40 + 24) + 6 * (24 + 40)
    assert thin.operations(3, 5) == 2 * 3 * 5 * weights + 3 * 2 * (2 * 5 * 5 * 24)


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

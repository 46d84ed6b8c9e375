"""Encoder blocks inside models: swap, compress, restore, files, reports; every family, every form of mask."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_models import KEEP, blocks_of, hidden, make_inputs, make_model
from torch import Tensor, nn

import tersor
from tersor import Recipe, SwapError, steps
from tersor.nn import EncoderBlock, Int8Linear, SparseInt8Linear


def call(model: nn.Module, name: str, padded: bool = True) -> Tensor:
    with torch.no_grad():
        return hidden(model(**make_inputs(name, padded)))


def apart(one: Tensor, other: Tensor, name: str, padded: bool = True) -> float:
    kept = KEEP.bool() if padded and name != "vit" else torch.ones(one.shape[:2], dtype=torch.bool)
    return float((one - other)[kept].norm() / other[kept].norm())


def compressed(name: str, **settings: Any) -> tuple[nn.Module, Any]:
    model = make_model(name)
    recipe = Recipe([steps.Quantize(**settings)])
    return model, tersor.compress(model, recipe, make_inputs(name, True), force=True, progress=False)


@pytest.mark.parametrize("name", ["bert", "distilbert", "mpnet", "vit", "mbart", "torch", "torch pre-norm", "plain"])
def test_compress_and_files(name: str, tmp_path: Path) -> None:
    model, result = compressed(name)
    blocks = [result.model.get_submodule(path) for path in blocks_of(model)]
    assert all(type(block).__mro__[1] is EncoderBlock for block in blocks)
    rows = [row for row in result.report.rows if row.layer == "EncoderBlock"]
    assert [row.name for row in rows] == blocks_of(model)
    assert all(len(row.parts) == 4 and row.parts[0].startswith("qkv 48x16 int8") for row in rows)
    assert all(row.rel_error is not None and row.rel_error < 0.05 for row in rows)
    assert result.report.totals.output_cosine > 0.998
    assert "zeros at positions of padding" in " ".join(result.report.notes)
    assert "in one call" in result.report.table()
    result.report.to_html()
    y = call(result.model, name)
    assert apart(y, call(model, name), name) < 0.05
    assert apart(call(result.model, name, False), call(model, name, False), name, False) < 0.05
    if name != "vit":
        assert not y[~KEEP.bool()].any() or name == "mbart" or "pre-norm" in name  # a norm may follow the blocks
    tersor.save(result.model, tmp_path / "model.tersor")
    loaded = tersor.load(tmp_path / "model.tersor", model=make_model(name))
    assert torch.equal(call(loaded, name), y)
    assert torch.equal(call(copy.deepcopy(result.model), name), y)
    assert torch.equal(call(pickle.loads(pickle.dumps(result.model)), name), y)
    assert not copy.deepcopy(result.model).load_state_dict(result.model.state_dict()).missing_keys
    assert tersor.restore(loaded) >= 2
    assert not any(isinstance(module, EncoderBlock) for module in loaded.modules())
    assert [path for path, _ in loaded.named_modules()] == [path for path, _ in model.named_modules()]
    assert apart(call(loaded, name), call(model, name), name) < 0.05


@pytest.mark.parametrize("name", ["bert", "mpnet", "torch", "torch pre-norm"])
@pytest.mark.parametrize("keep_float", [True, False])
def test_swap_and_restore(name: str, keep_float: bool) -> None:
    model = make_model(name)
    expected, seen = call(model, name), []
    inner = next(module for path, module in model.named_modules() if path.endswith(("attention", "self_attn")))
    handle = inner.register_forward_hook(lambda *_: seen.append(1))
    report = tersor.swap(model, force=True, progress=False, keep_float=keep_float)
    assert sum(row.layer == "EncoderBlock" for row in report.rows) == 2
    assert report.totals.kept == sum(row.action == "kept" for row in report.rows)
    call(model, name)
    assert seen  # a hook that was there before still runs
    handle.remove()
    assert apart(call(model, name), expected, name) < 0.05
    tersor.restore(model)
    y = call(model, name)
    assert apart(y, expected, name) < (1e-6 if keep_float else 0.05)
    if keep_float:
        assert torch.equal(y[KEEP.bool()], expected[KEEP.bool()])


def test_layers_stay_apart_where_they_should() -> None:
    model = make_model("bert")
    for settings, why in (
        ({"exclude": ["*.1.output.dense"]}, "excluded by"),
        ({"include": ["encoder.layer.0.*"]}, "not included"),
    ):
        swapped = copy.deepcopy(model)
        report = tersor.swap(swapped, force=True, progress=False, **settings)
        assert isinstance(swapped.encoder.layer[0], EncoderBlock)
        assert not isinstance(swapped.encoder.layer[1], EncoderBlock)
        assert any("encoder.layer.1" in note and why in note for note in report.notes)
    swapped = copy.deepcopy(model)
    tersor.swap(swapped, force=True, progress=False, blocks=False)
    assert isinstance(swapped.encoder.layer[1].output.dense, Int8Linear)
    _, result = compressed("bert", blocks=False)
    assert not any(isinstance(module, EncoderBlock) for module in result.model.modules())
    inputs = make_inputs("bert", True)
    recipe = Recipe([steps.Quantize(activations="static")])
    result = tersor.compress(model, recipe, inputs, calibration=[inputs], force=True, progress=False)
    assert not any(isinstance(module, EncoderBlock) for module in result.model.modules())
    assert any("static ranges" in note for note in result.report.notes)


def test_a_model_that_is_a_block_keeps_its_layers() -> None:
    block = make_model("bert").encoder.layer[0]
    report = tersor.swap(block, force=True, progress=False)
    assert not isinstance(block, EncoderBlock)
    assert any("it is the model itself" in note for note in report.notes)


def test_blocks_that_get_other_masks_keep_their_layers() -> None:
    model = make_model("torch")
    causal = nn.Transformer.generate_square_subsequent_mask(7)
    inputs = {"src": torch.randn(2, 7, 16), "mask": causal}
    result = tersor.compress(model, Recipe([steps.Quantize()]), inputs, force=True, progress=False)
    assert isinstance(result.model.layers[0].linear1, Int8Linear)
    assert any("mask of every query's own" in note for note in result.report.notes)


def test_unknown_and_refused_blocks_are_reported() -> None:
    transformers = pytest.importorskip("transformers")
    t5 = transformers.T5EncoderModel(transformers.T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=24, num_layers=2))
    report = tersor.swap(t5, force=True, progress=False)
    assert any("encoder.block.{0,1}" in note and "T5Block" in note for note in report.notes)
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    decoder = transformers.BertModel(transformers.BertConfig(is_decoder=True, intermediate_size=24, **sizes))
    report = tersor.swap(decoder, force=True, progress=False)
    assert any("it is a decoder" in note for note in report.notes)


def test_pruned_blocks_hold_sparse_products() -> None:
    model, inputs = make_model("bert"), make_inputs("bert", True)
    recipe = Recipe([steps.Prune(sparsity=0.8), steps.Quantize()])
    result = tersor.compress(model, recipe, inputs, force=True, progress=False)
    row = next(row for row in result.report.rows if row.layer == "EncoderBlock")
    assert all("sparse int8 1x4" in part for part in row.parts)
    apart_too = tersor.compress(
        model, Recipe([steps.Prune(sparsity=0.8), steps.Quantize(blocks=False)]), inputs, force=True, progress=False
    )
    assert isinstance(apart_too.model.encoder.layer[0].output.dense, SparseInt8Linear)
    assert apart(call(result.model, "bert"), call(apart_too.model, "bert"), "bert") < 0.02


def test_hidden_states_and_attentions_of_transformers() -> None:
    model, result = compressed("bert eager")
    inputs = make_inputs("bert eager", True)
    with torch.no_grad():
        states = result.model(**inputs, output_hidden_states=True).hidden_states
        expected = model(**inputs, output_hidden_states=True).hidden_states
        assert len(states) == len(expected) == 3
        for one, other in zip(states, expected, strict=True):
            assert apart(one, other, "bert") < 0.05
        before = hidden(result.model(**inputs))
        attentions = result.model(**inputs, output_attentions=True).attentions
        assert len(attentions) == 2
        for one, other in zip(attentions, model(**inputs, output_attentions=True).attentions, strict=True):
            assert float((one - other).abs().max()) < 0.05
        assert torch.equal(hidden(result.model(**inputs)), before)  # and the hooks that it left sleep


def test_measured_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("bert")
    for gain, whole in ((4.0, True), (0.5, False)):
        times = itertools.cycle([(100.0, 100.0 / gain), (200.0, 100.0 / gain)])
        monkeypatch.setattr("tersor.tune_block.race", lambda *_, times=times: (next(times), False))
        monkeypatch.setattr(sys.modules["tersor.tune"], "race", lambda *_: ((9.0, 1.0), False))
        report = tersor.swap(copy.deepcopy(model), progress=False)
        rows = [row for row in report.rows if row.layer == "EncoderBlock"]
        assert len(rows) == (2 if whole else 0)
        text = rows[0].reason if whole else " ".join(report.notes)
        assert "with swapped layers 100" in text
        assert ("one call" in text) if whole else ("swapped layers" in text)


def test_nested_tensors_of_torch_encoders() -> None:
    model = make_model("torch")
    expected = call(model, "torch")  # through nested tensors
    tersor.swap(model, force=True, progress=False)
    assert model.use_nested_tensor is False
    y = call(model, "torch")
    assert apart(y, expected, "torch") < 0.05
    assert not y[~KEEP.bool()].any()
    tersor.restore(model)
    assert model.use_nested_tensor is True
    assert torch.equal(call(model, "torch"), expected)


def test_sequences_are_only_as_long_as_their_tokens() -> None:
    """What a sequence gives doesn't depend on how far its batch was padded."""
    _, result = compressed("distilbert")
    ids = torch.randint(3, 40, (1, 4))
    alone = hidden(result.model(input_ids=ids, attention_mask=torch.ones_like(ids)))
    padded = torch.cat([ids, torch.zeros(1, 9, dtype=torch.long)], 1)
    mask = (torch.arange(13) < 4).long()[None]
    within = hidden(result.model(input_ids=padded, attention_mask=mask))
    torch.testing.assert_close(within[:, :4], alone, rtol=1e-5, atol=1e-5)


def test_nothing_to_swap_still_raises() -> None:
    with pytest.raises(SwapError, match="holds no linear layer"):
        tersor.swap(nn.Sequential(nn.ReLU()), progress=False)

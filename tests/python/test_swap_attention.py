"""Torch's own attention modules: they read weights past the layers, so their fast paths have to go."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor import Recipe, compress, restore, steps, swap
from tersor.nn import Int8Linear


def encoder_layer(**options: Any) -> nn.TransformerEncoderLayer:
    torch.manual_seed(2)
    return nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, **options)


def by_hand(layer: nn.TransformerEncoderLayer, x: Tensor, **masks: Any) -> Tensor:
    """The encoder layer spelt out, calling every module."""
    mixed = layer.self_attn(x, x, x, need_weights=False, **masks)[0]
    x = layer.norm1(x + mixed)
    y: Tensor = layer.norm2(x + layer.linear2(layer.activation(layer.linear1(x))))
    return y


def apart(y: Tensor, reference: Tensor) -> float:
    return float((y - reference).norm() / reference.norm())


NOISE = 5e-4
"""Float noise ahead of a quantiser can move single values by one step; int8 itself costs more than this here."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Int8Linear]:
    """The int8 layers that are called, in order. A hook would change the path that torch takes."""
    seen: list[Int8Linear] = []
    forward = Int8Linear.forward

    def note(self: Int8Linear, x: Tensor) -> Tensor:
        seen.append(self)
        return forward(self, x)

    monkeypatch.setattr(Int8Linear, "forward", note)
    return seen


PADDING = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
CAUSAL = nn.Transformer.generate_square_subsequent_mask(6)
MASKS = [{}, {"src_key_padding_mask": PADDING}, {"src_mask": CAUSAL}, {"src_mask": CAUSAL, "is_causal": True}]


def attention_masks(masks: dict[str, Any]) -> dict[str, Any]:
    names = {"src_key_padding_mask": "key_padding_mask", "src_mask": "attn_mask", "is_causal": "is_causal"}
    return {names[key]: value for key, value in masks.items()}


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_layer_calls_its_linears(masks: dict[str, Any], activation: str, calls: list[Int8Linear]) -> None:
    layer = encoder_layer(activation=activation).eval()
    x = torch.randn(2, 6, 32)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = layer(x, **masks)
        report = swap(layer, force=True)
        assert isinstance(layer.linear1, Int8Linear)
        assert isinstance(layer.linear2, Int8Linear)
        y = layer(x, **masks)
        assert calls == [layer.linear1, layer.linear2]
        assert apart(y, by_hand(layer, x, **attention_masks(masks))) < NOISE < apart(y, expected) < 0.03
        assert {row.name: row.reason for row in report.kept} == {
            "self_attn.out_proj": "nn.MultiheadAttention reads its weight without calling it"
        }
        assert "fused encoder path is off in (model)" in report.notes[0]
        restore(layer)
        calls.clear()
        assert apart(layer(x, **masks), expected) < 1e-6
        assert calls == []
        assert layer.activation_relu_or_gelu == {"relu": 1, "gelu": 2}[activation]


@pytest.mark.parametrize("which", ["layers.*.linear?", "layers.0.linear1", "layers.1.linear2"])
def test_encoder_with_padding_never_sees_nested_tensors(which: str, calls: list[Int8Linear]) -> None:
    encoder = nn.TransformerEncoder(encoder_layer(), 2).eval()
    x = torch.randn(2, 6, 32)
    with torch.no_grad():
        expected = encoder(x, src_key_padding_mask=PADDING)
        assert not expected[PADDING].any()
        swap(encoder, include=[which], force=True)
        y = encoder(x, src_key_padding_mask=PADDING)
        assert calls == [module for module in encoder.modules() if isinstance(module, Int8Linear)]
        hand = x
        for layer in encoder.layers:
            hand = by_hand(layer, hand, key_padding_mask=PADDING)
        kept = ~PADDING
        assert apart(y, hand) < NOISE < apart(y[kept], expected[kept]) < 0.03
        clone = copy.deepcopy(encoder)
        assert apart(clone(x, src_key_padding_mask=PADDING), y) < NOISE
        restore(encoder)
        assert encoder.use_nested_tensor
        assert apart(encoder(x, src_key_padding_mask=PADDING), expected) < 1e-6


def test_training_mode_agrees_with_eval() -> None:
    layer = encoder_layer(dropout=0.0)
    swap(layer, force=True)
    x = torch.randn(2, 6, 32)
    trained = layer(x)
    trained.sum().backward()
    with torch.no_grad():
        assert apart(layer.eval()(x), trained) < NOISE


def test_compress_compares_without_the_fused_path() -> None:
    encoder = nn.TransformerEncoder(encoder_layer(), 2)
    inputs = {"src": torch.randn(2, 6, 32), "src_key_padding_mask": PADDING}
    result = compress(encoder, Recipe([steps.Quantize(blocks=False)]), inputs, force=True)
    assert len(result.report.swapped) == 4
    assert result.report.totals.output_error is not None
    assert 0 < result.report.totals.output_error < 0.03
    assert encoder.use_nested_tensor
    assert encoder.layers[0].activation_relu_or_gelu == 1
    assert torch.backends.mha.get_fastpath_enabled()


def test_attention_alone_and_the_full_transformer() -> None:
    model = nn.Transformer(32, 4, 1, 1, 64, batch_first=True).eval()
    x, target = torch.randn(2, 6, 32), torch.randn(2, 5, 32)
    with torch.no_grad():
        expected = model(x, target)
        report = swap(model, force=True, blocks=False)
        assert (len(report.swapped), len(report.kept)) == (4, 3)
        assert all(row.name.endswith("out_proj") for row in report.kept)
        assert 0 < apart(model(x, target), expected) < 0.03

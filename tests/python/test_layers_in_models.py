"""Int8 layers inside modules that look at more than `forward`: T5, GPT-2, torch's own attention and encoder."""

from __future__ import annotations

import copy
import pickle
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tersor.errors import TersorError
from tersor.nn import Int8Conv1D, Int8Linear


class Calls(TorchDispatchMode):
    """Counts the tersor ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = self.dequantize = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.linear += func.name() == "tersor::linear_s8"
        self.dequantize += func.name() == "tersor::dequantize_s8"
        return func(*args, **(kwargs or {}))


def replace_all(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> int:
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in kinds and "head" not in name:
                setattr(parent, name, Int8Linear.from_float(child))
                count += 1
    return count


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_t5_asks_for_the_dtype_of_a_weight_on_every_call(feed_forward: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, feed_forward_proj=feed_forward,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    ids = torch.arange(6)[None]
    replaced = replace_all(model, (nn.Linear,))
    assert model.dtype == torch.float32
    with torch.no_grad(), Calls() as calls:
        logits = model(input_ids=ids, decoder_input_ids=ids).logits
    assert calls.linear == replaced
    assert calls.dequantize == 0
    assert torch.isfinite(logits).all()
    model.bfloat16()
    assert model.dtype == torch.bfloat16
    assert model(input_ids=ids, decoder_input_ids=ids).logits.dtype == torch.bfloat16
    block = model.float().encoder.block[0].layer[1].DenseReluDense
    x = torch.randn(1, 3, 16)
    with torch.no_grad():
        assert torch.allclose(torch.compile(block, fullgraph=True)(x), block(x), atol=1e-5)


def test_gpt2_conv1d() -> None:
    transformers = pytest.importorskip("transformers")
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    first = model.transformer.h[0].attn.c_attn
    assert replace_all(model, (conv1d,)) == 8
    layer = model.transformer.h[0].attn.c_attn
    assert type(layer) is Int8Conv1D
    assert (layer.nf, layer.nx, layer.in_features, layer.out_features) == (48, 16, 16, 48)
    assert layer.weight.shape == first.weight.shape == (16, 48)
    step = layer.canonical_tensors()["weight_scale"]
    assert torch.all((layer.weight - first.weight).abs() <= step * 0.5001)
    with Calls() as calls:
        out = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False)
    assert out.shape == (1, 6)
    assert calls.linear == 8 * 3
    assert calls.dequantize == 0


def test_attention_that_reads_the_weight_says_that_it_computes_in_float() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    attention.out_proj = Int8Linear.from_float(nn.Linear(8, 8))
    x = torch.randn(1, 3, 8)
    with (
        torch.no_grad(),
        pytest.warns(UserWarning, match="multi_head_attention_forward got the weight"),
    ):
        got = attention(x, x, x)[0]
    attention.out_proj = attention.out_proj.to_float()
    torch.testing.assert_close(got, attention(x, x, x)[0])
    with pytest.warns(UserWarning, match="linear got the weight of an accelerated layer"):
        F.linear(x, Int8Linear.from_float(nn.Linear(8, 8)).weight)


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_fused_encoder_layer_calls_int8_layers_instead_of_reading_them(norm_first: bool) -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first).eval()
    encoder.linear1 = Int8Linear.from_float(encoder.linear1)
    encoder.linear2 = Int8Linear.from_float(encoder.linear2)
    stack = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=not norm_first).eval()
    x, padding = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad(), Calls() as calls:
        encoder(x)
        stack(x, src_key_padding_mask=padding)
    assert calls.linear == 2 + 4
    assert calls.dequantize == 0


def test_reading_the_weight() -> None:
    layer = Int8Linear.from_float(nn.Linear(8, 5).bfloat16())
    tensors = layer.canonical_tensors()
    expected = (tensors["weight_q"].float() * tensors["weight_scale"][:, None]).bfloat16()
    weight = layer.weight
    with Calls() as calls:
        assert weight is layer.weight
        assert isinstance(weight, Tensor)
        assert (weight.dtype, weight.shape, weight.size(1), weight.ndim) == (torch.bfloat16, (5, 8), 8, 2)
        assert (weight.device.type, weight.requires_grad, weight.is_cuda, weight.numel()) == ("cpu", False, False, 40)
        assert weight.data is weight.detach() is weight
        assert len(weight) == 5
    assert calls.dequantize == 0
    for read in (weight.clone(), weight[:], weight.contiguous(), torch.stack([weight])[0], weight.t().t(), weight + 0):
        assert type(read) is Tensor
        assert torch.equal(read, expected)
    assert weight.float().numpy().tolist() == expected.float().tolist()
    assert repr(weight) == repr(expected)
    layer.float()
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight.bfloat16(), expected)
    before = weakref.ref(layer.packed)
    del weight
    layer.load_state_dict({**tensors, "weight_q": -tensors["weight_q"]})
    assert before() is None  # no view keeps the old bytes alive
    assert torch.equal(layer.weight.bfloat16(), -expected)
    other = Int8Linear.from_float(nn.Linear(8, 5))
    layer.packed = other.packed
    assert torch.equal(layer.weight + 0, other.weight + 0)
    layer.bias = nn.Parameter(layer.bias.half())
    assert layer.dtype == layer.weight.dtype == torch.float16
    with pytest.raises(TersorError, match="no weights yet"):
        Int8Linear(3, 4).weight.sum()


def test_large_weight_lives_in_a_mapping_of_its_own() -> None:
    """From 8 MiB on the packed bytes are not the allocator's; copies, pickles and sharing do not notice."""
    layer = Int8Linear.from_float(nn.Linear(4096, 2304))
    assert layer.packed.numel() > 8 << 20
    x = torch.randn(3, 4096)
    expected = layer(x)
    loaded = Int8Linear(4096, 2304)
    loaded.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded, layer.share_memory()):
        assert torch.equal(other(x), expected)
    with torch.device("meta"), torch.inference_mode():
        made = Int8Linear.from_float(nn.Linear(4096, 2304, device="cpu"))
    assert made.packed.device.type == "cpu"
    assert not made.packed.is_inference()

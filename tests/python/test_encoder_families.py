"""Which modules are encoder blocks: found by structure, tried out, told from what only looks like one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from encoder_models import MODELS, blocks_of, make_model
from torch import Tensor, nn

from tersor.encoder import FAMILIES, Anatomy, Family, find_family, register_family
from tersor.encoder.family import activation_name
from tersor.encoder.masks import key_padding, recognise, shared_scores
from tersor.encoder.plain import PlainBlock
from tersor.encoder.probe import Probe
from tersor.encoder.reference import padded_scores


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_found(name: str) -> None:
    model, expected = make_model(name), MODELS[name]
    found = {path: Probe().look(module) for path, module in model.named_modules() if not isinstance(module, nn.Linear)}
    blocks = {path: entry for path, entry in found.items() if entry is not None}
    assert list(blocks) == blocks_of(model)
    assert len(blocks) == 2
    for entry in blocks.values():
        assert (entry.family.name, entry.anatomy.norm_first, entry.anatomy.activation) == expected[:3]


def test_a_meta_block_is_found_without_its_weights() -> None:
    model = make_model("bert").to("meta")
    assert Probe().look(model.get_submodule(blocks_of(model)[0])) is not None


def test_decoders_and_other_forms_say_why() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    decoder = transformers.BertModel(transformers.BertConfig(is_decoder=True, intermediate_size=24, **sizes))
    quick = transformers.BertModel(transformers.BertConfig(hidden_act="quick_gelu", intermediate_size=24, **sizes))
    rows = nn.TransformerEncoderLayer(16, 2, 24)
    scaled = PlainBlock(16, 2, 24)
    scaled.own = nn.Linear(3, 3)
    for module, message in (
        (decoder.encoder.layer[0], "it is a decoder"),
        (quick.encoder.layer[0], "QuickGELU"),
        (rows, "batch_first"),
        (scaled, r"carries more than an encoder block: own\.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            Probe().look(module)
    t5 = transformers.T5Model(transformers.T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=24, num_layers=1))
    assert all(Probe().look(module) is None for module in t5.modules())


def test_what_computes_something_else_is_refused() -> None:
    """A subclass with the same structure and another formula, which only a trial can tell."""

    class Causal(PlainBlock):
        def forward(self, x: Tensor, mask: Any = None, score_bias: Any = None) -> Tensor:
            causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()[None, None]
            return super().forward(x, causal if mask is None else causal & mask[:, None, None].bool(), score_bias)

    class Failing(PlainBlock):
        def forward(self, x: Tensor, mask: Any = None, score_bias: Any = None) -> Tensor:
            raise RuntimeError("needs a full moon")

    assert Probe().look(PlainBlock(16, 2, 24)) is not None
    with pytest.raises(ValueError, match="computes something else"):
        Probe().look(Causal(16, 2, 24))
    with pytest.raises(ValueError, match="full moon"):
        Probe().look(Failing(16, 2, 24))


def test_trying_out_leaves_no_trace() -> None:
    block = make_model("bert").encoder.layer[0]
    calls: list[int] = []
    block.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(block.state_dict())
    state = torch.random.get_rng_state()
    assert Probe().look(block) is not None
    assert not calls
    assert len(block._forward_hooks) == 1
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())


def test_registry_refuses_clashes() -> None:
    with pytest.raises(ValueError, match="bert"):
        register_family(type("Other", (Family,), {"name": "bert"}))
    assert all(family.name == name for name, family in FAMILIES.items())
    assert find_family(nn.Linear(2, 2)) is None
    assert isinstance(find_family(PlainBlock(16, 2, 24))[1], Anatomy)


def test_activations_are_known_by_what_they_compute() -> None:
    assert activation_name(nn.GELU(approximate="tanh")) == "gelu_tanh"
    assert activation_name(lambda x: x * torch.sigmoid(x)) == "silu"
    with pytest.raises(ValueError, match="ELU is none of"):
        activation_name(nn.ELU())
    with pytest.raises(ValueError, match="can't be tried out"):
        activation_name(None)


KEEP = torch.tensor([[True, True, True, False], [True, False, False, False]])
SMALL = torch.finfo(torch.float32).min


def wide(row: Tensor, queries: int = 4) -> Tensor:
    return row[:, None, None].expand(-1, 1, queries, -1).contiguous()


@pytest.mark.parametrize(
    ("mask", "true_is_kept"),
    [
        (KEEP, True),
        (~KEEP, False),
        (KEEP.long(), True),
        (wide(KEEP), True),
        (wide(KEEP, 1), True),
        (wide(KEEP).expand(-1, 2, -1, -1), True),
        (wide(padded_scores(KEEP)[:, 0, 0]), True),
        (wide(torch.zeros(2, 4).masked_fill(~KEEP, SMALL)), True),
        (torch.zeros(2, 4).masked_fill(~KEEP, -torch.inf), False),
        (torch.zeros(2, 4, dtype=torch.bfloat16).masked_fill(~KEEP, -10000.0), False),
    ],
)
def test_masks_about_padding_are_read(mask: Tensor, true_is_kept: bool) -> None:
    keep = key_padding(mask, 2, 4, true_is_kept)
    assert keep is not None
    assert torch.equal(keep, KEEP)
    nothing = torch.zeros_like(mask) if mask.is_floating_point() else torch.full_like(mask, true_is_kept)
    assert key_padding(nothing, 2, 4, true_is_kept).numel() == 0


def test_other_masks_are_not() -> None:
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    biases = wide(torch.tensor([[0.0, -1.0, 0.5, 0.0]] * 2))
    per_head = wide(KEEP).repeat(1, 2, 1, 1)
    per_head[1, 1, :, 0] = False
    for mask in (
        causal[None, None].expand(2, 1, 4, 4),
        biases,
        per_head,
        KEEP[:, :3],
        KEEP.repeat(2, 1),
        KEEP[:, None].expand(-1, 4, -1),
        wide(KEEP).long() * 2,
        KEEP.to_sparse(),
        wide(torch.full((2, 4), torch.nan)),
    ):
        assert key_padding(mask, 2, 4, True) is None


def test_a_mask_of_one_sequence_counts_for_all() -> None:
    assert torch.equal(key_padding(wide(KEEP[:1]), 3, 4, True), KEEP[:1].expand(3, 4))


def test_scores_are_shared_by_the_batch_or_not_known() -> None:
    scores = torch.randn(1, 3, 4, 4)
    assert torch.equal(shared_scores(scores.expand(2, -1, -1, -1), 4), scores[0])
    assert shared_scores(torch.randn(2, 3, 4, 4), 4) is None
    assert shared_scores(scores, 5) is None
    assert shared_scores(None, 4).numel() == 0


def test_a_mask_that_was_written_to_is_read_again() -> None:
    x, mask = torch.randn(2, 4, 8), KEEP.clone()
    first = recognise(x, mask, None, True)[0].clone()
    mask.numpy()[0, 3] = True  # past torch's version counter
    assert not torch.equal(recognise(x, mask, None, True)[0], first)

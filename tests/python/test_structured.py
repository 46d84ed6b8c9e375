"""Structured removal: what is coupled leaves together, and what is left computes what it did without the removed."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_models import assert_same
from torch import Tensor, nn

import tersor
from tersor import observe, structure
from tersor.prune import CRITERIA, prune_channels
from tersor.prune.structured.edits import apply
from tersor.prune.structured.groups import find_groups, parameters, work
from tersor.prune.structured.trace import Coupling, trace


class Residual(nn.Module):
    """Residual add, batch norm, depthwise and grouped convolutions, concatenation, split, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.branch = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(32, 24, 1, groups=4)
        self.side = nn.Conv2d(3, 8, 1)
        self.gate = nn.Conv2d(32, 40, 1)
        self.scale = nn.Parameter(torch.rand(20, 1, 1))
        self.last = nn.Linear(20 * 4, 7)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, 8, 8] to [batch, 7]."""
        y = torch.relu(self.norm(self.stem(x)))
        y = self.grouped(self.depthwise(y + self.branch(y)))
        y = self.gate(torch.cat([y, self.side(x)], 1))
        one, other = y.chunk(2, 1)
        y = (one * torch.sigmoid(other) + nn.functional.glu(y, 1)) * self.scale
        return self.last(nn.functional.adaptive_max_pool2d(y, 2).flatten(1))


class Recurrent(nn.Module):
    """A convolution over time, a bidirectional LSTM of two layers, a GRU, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(5, 8, 3, padding=1)
        self.lstm = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 10, batch_first=True)
        self.last = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 5, time] to [batch, 3]."""
        y, _ = self.lstm(self.conv(x).transpose(1, 2))
        _, state = self.gru(y)
        return self.last(state[0])


class Attention(nn.Module):
    """Heads by reshape of one packed projection, as in vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.qkv = nn.Linear(12, 48)
        self.out = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, 12] to the same."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, tokens, -1))


class Norms(nn.Module):
    """Layer norm, group norm, PReLU, transposed convolution, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 16, 2, stride=2)
        self.group = nn.GroupNorm(4, 16)
        self.act = nn.PReLU(16)
        self.mid = nn.Linear(16, 12)
        self.layer = nn.LayerNorm(12)
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, h, w] to [batch, 2 h, 2 w, 3]."""
        y = nn.functional.dropout(self.act(self.group(self.up(x))), training=self.training).permute(0, 2, 3, 1)
        return self.last(self.layer(self.mid(y)))


def make(cls: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = cls().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model


def transformer(name: str) -> tuple[nn.Module, Any]:
    transformers: Any = pytest.importorskip("transformers", reason="needs the extra tersor[transformers]")
    tokens = torch.tensor([[1, 5, 49, 7], [0, 3, 3, 8]])
    common = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 20}
    torch.manual_seed(0)
    if name == "bert":
        config = transformers.BertConfig(**common, num_attention_heads=3, max_position_embeddings=20)
        return transformers.BertModel(config).eval(), {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if name == "eager":
        config = transformers.BertConfig(**common, num_attention_heads=3, attn_implementation="eager")
        return transformers.BertModel(config).eval(), tokens
    if name == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=50, n_embd=24, n_layer=2, n_head=3, bos_token_id=None, eos_token_id=None
        )
        return transformers.GPT2LMHeadModel(config).eval(), tokens
    if name == "llama":
        config = transformers.LlamaConfig(**common, num_attention_heads=6, num_key_value_heads=3)
        return transformers.LlamaForCausalLM(config).eval(), tokens
    config = transformers.T5Config(vocab_size=50, d_model=24, d_kv=8, d_ff=20, num_layers=2, num_heads=3)
    return transformers.T5Model(config).eval(), {"input_ids": tokens, "decoder_input_ids": tokens}


CASES: dict[str, Any] = {
    "residual": (Residual, (2, 3, 8, 8), ["stem", "grouped", "side", "gate"]),
    "recurrent": (Recurrent, (2, 5, 9), ["conv", "lstm", "gru"]),
    "attention": (Attention, (2, 5, 12), ["qkv"]),
}
TRANSFORMERS = ["bert", "eager", "gpt2", "llama", "t5"]


def case(name: str) -> tuple[nn.Module, Any]:
    if name in TRANSFORMERS:
        return transformer(name)
    cls, shape, _ = CASES[name]
    return make(cls), torch.randn(shape, generator=torch.Generator().manual_seed(1))


def silenced(model: nn.Module, coupling: Coupling, removed: np.ndarray) -> nn.Module:
    """A copy in which nothing reads the removed units: their columns of every weight are zero."""
    other = copy.deepcopy(model)
    tensors = dict(other.named_parameters())
    for name, dim in coupling.consumers:
        gone = np.isin(coupling.indices.find(coupling.axes[name, dim]), removed)
        with torch.no_grad():
            tensors[name].movedim(dim, 0)[torch.tensor(gone)] = 0
    return other


@pytest.mark.parametrize("name", [*CASES, *TRANSFORMERS])
def test_removal_is_exact_where_nothing_normalises_over_it(name: str) -> None:
    """Each group alone: the narrow model computes what the whole one does when nobody reads the removed units."""
    model, inputs = case(name)
    coupling = trace(model, inputs)
    groups, _ = find_groups(model, coupling)
    groups = [group for group in groups if group.kind != "width"]
    assert groups
    tried = groups if name in CASES else {group.kind: group for group in groups}.values()  # the last of each kind
    for group in tried:
        removed = group.units[[0, len(group.units) - 1]] if len(group.units) > 2 else group.units[:1]
        if group.kind == "units" and name == "recurrent":
            removed = group.units[1:3]
        expected = list(observe.floats(observe.run(_readers(model, coupling, removed), inputs, "inputs")))
        narrow = copy.deepcopy(model)
        apply(narrow, coupling, removed, groups, inputs)
        got = list(observe.floats(observe.run(narrow, inputs, "inputs")))
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert parameters(model, coupling, removed) == sum(p.numel() for p in narrow.parameters())
        assert work(coupling, removed) < work(coupling, removed[:0])


def _readers(model: nn.Module, coupling: Coupling, removed: np.ndarray) -> nn.Module:
    """As :func:`silenced`; the recurrent weights read the state, too."""
    other = silenced(model, coupling, removed)
    with torch.no_grad():
        for module in other.modules():
            if isinstance(module, nn.RNNBase):
                for key, tensor in module.named_parameters():
                    where = next(n for n, p in other.named_parameters() if p is tensor)
                    if key.startswith("weight"):
                        gone = np.isin(coupling.indices.find(coupling.axes[where, 1]), removed)
                        tensor[:, torch.tensor(gone)] = 0
    return other


def test_groups_of_the_residual_model() -> None:
    model, inputs = case("residual")
    groups, fixed = find_groups(model, trace(model, inputs))
    found = {group.name: (group.layers, group.kind, len(group.units)) for group in groups}
    assert found == {
        "stem": (("stem", "branch", "depthwise"), "channels", 4),  # in step in the four groups of `grouped`
        "grouped": (("grouped",), "channels", 6),
        "side": (("side",), "channels", 8),
        "gate": (("gate",), "channels", 20),
    }
    assert fixed == {"last": "it is what the model returns"}


def test_norms_keep_running() -> None:
    model = make(Norms)
    inputs = torch.randn(2, 3, 4, 4)
    result = prune_channels(model, inputs, ratio=0.5, round_to=1)
    assert {row.layers[0]: (row.before, row.after) for row in result.groups} == {"up": (4, 2), "mid": (12, 6)}
    assert (model.group.num_channels, model.act.num_parameters, model.layer.normalized_shape) == (8, 8, (6,))
    assert model(inputs).shape == (2, 8, 8, 3)
    assert [p.requires_grad for p in model.parameters()] == [True] * len(list(model.parameters()))
    model(inputs).sum().backward()


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion(name: str) -> None:
    model, inputs = case("residual")
    with torch.no_grad():  # nothing reads channel 3 of each group of `gate`, nor does it hold anything
        for column in (3, 23):
            model.gate.weight[column] = 0
            model.gate.bias[column] = 0
        model.last.weight[:, 12:16] = 0

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    expected = model(inputs)
    result = prune_channels(
        model, inputs, ratio=0.05, round_to=1, criterion=name, include=["gate"], calibration=[inputs], loss=loss
    )
    assert [row.after for row in result.groups] == [19]
    if name != "random":
        torch.testing.assert_close(model(inputs), expected, rtol=1e-4, atol=1e-5)


def test_layers_ratios_and_multiples() -> None:
    model, inputs = case("residual")
    result = prune_channels(model, inputs, ratio=0.5, round_to=4, overrides={"side": 0.0, "gate": 0.75})
    # stem: 4 units of 4 channels; grouped: 6 units of 4; gate: 20 units of 2, in steps of 2
    assert {row.layers[0]: row.after for row in result.groups} == {"stem": 2, "grouped": 3, "side": 8, "gate": 6}
    assert result.parameters_after == sum(p.numel() for p in model.parameters()) < result.parameters_before


def test_global_takes_where_there_is_least() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    with torch.no_grad():
        model[0].weight[:12] *= 1e-3
    result = prune_channels(model, torch.randn(3, 4), ratio=12 / 32, scope="global", round_to=1)
    assert [row.after for row in result.groups] == [4, 16]


@pytest.mark.parametrize("kind", ["parameters", "flops"])
def test_targets(kind: Any) -> None:
    model, inputs = case("residual")
    result = prune_channels(model, inputs, target={kind: 0.5}, round_to=1)
    parts = (result.parameters_after / result.parameters_before, result.flops_after / result.flops_before)
    assert 0.3 < parts[kind == "flops"] <= 0.5


def test_target_of_latency_takes_the_smallest_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is replaced by the number of parameters; the search asks it about models that were really narrowed."""

    class Result:
        def __init__(self, a: nn.Module, b: nn.Module) -> None:
            self.ratio = sum(p.numel() for p in a.parameters()) / sum(p.numel() for p in b.parameters())

    importlib.import_module("tersor.benchmark")
    monkeypatch.setattr(sys.modules["tersor.benchmark"], "benchmark", lambda a, b, inputs, **settings: Result(a, b))
    model, inputs = case("residual")
    result = prune_channels(model, inputs, target={"latency": 0.5}, round_to=1)
    assert 0.3 < result.parameters_after / result.parameters_before <= 0.5


def test_an_unreachable_target_changes_nothing() -> None:
    model, inputs = case("residual")
    before = copy.deepcopy(model)
    with pytest.raises(tersor.PruneError, match="can't be reached"):
        prune_channels(model, inputs, target={"parameters": 0.0001})
    assert_same(model, before)
    assert structure.records(model) == []


class Stubborn(nn.Module):
    """Splits at a place that is written down, so its first layer can't be narrowed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 16)
        self.second = nn.Linear(10, 12)
        self.third = nn.Linear(12 + 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 4] to [batch, 3]."""
        y = self.first(x)
        return self.third(torch.cat([self.second(y[:, :10]), y[:, 10:]], 1))


def test_what_is_not_understood_stays_and_is_reported() -> None:
    model, inputs = make(Stubborn), torch.randn(2, 4)
    result = prune_channels(model, inputs, ratio=0.5, round_to=1)
    rows = {row.layers[0]: (row.after, row.reason) for row in result.groups}
    assert rows["second"] == (6, None)
    after, reason = rows["first"]
    assert after == 16
    assert reason is not None
    assert model(inputs).shape == (2, 3)
    assert "first" in result.table()


def test_everything_rolls_back() -> None:
    model, inputs = make(Stubborn), torch.randn(2, 4)
    before = copy.deepcopy(model)
    with pytest.raises(tersor.PruneError, match=r"nothing can be removed.*first"):
        prune_channels(model, inputs, ratio=0.5, round_to=1, include=["first"])
    assert_same(model, before)
    assert repr(model) == repr(before)
    assert structure.records(model) == []


def test_heads_and_feed_forward_of_bert_and_its_configuration(tmp_path: Path) -> None:
    model, inputs = transformer("bert")
    prune_channels(model, inputs, ratio=0.34, round_to=1)
    config: Any = model.config
    assert (config.num_attention_heads, config.intermediate_size, config.hidden_size) == (2, 13, 24)
    assert model.get_submodule("encoder.layer.0.attention.self").num_attention_heads == 2
    tersor.save(model, tmp_path / "bert.tersor")
    loaded = tersor.load(tmp_path / "bert.tersor")
    assert_same(model, loaded)
    assert loaded.config.intermediate_size == 13
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).last_hidden_state, model(**inputs).last_hidden_state)


def test_the_width_of_a_transformer(tmp_path: Path) -> None:
    model, inputs = transformer("llama")
    result = prune_channels(model, inputs, ratio=0.5, round_to=1, width=True)
    assert {row.kind: row.after for row in result.groups} == {"width": 12, "heads": 2, "neurons": 10}
    config: Any = model.config
    assert (config.hidden_size, config.intermediate_size) == (12, 10)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    tersor.save(model, tmp_path / "llama.tersor")
    assert_same(model, tersor.load(tmp_path / "llama.tersor"))


def test_multihead_attention_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 3))
    result = prune_channels(model.eval(), torch.randn(2, 5, 6), ratio=0.5)
    assert [(row.layers, row.after) for row in result.groups] == [(("1.linear1",), 16)]
    assert "nn.MultiheadAttention" in result.kept["0"]


def test_file_and_fresh_model(tmp_path: Path) -> None:
    model, inputs = case("recurrent")
    prune_channels(model, inputs, ratio=0.5, round_to=1)
    assert (model.lstm.hidden_size, model.gru.input_size, model.gru.hidden_size) == (3, 6, 5)
    tersor.save(model, tmp_path / "net.tersor")
    loaded = tersor.load(tmp_path / "net.tersor", Recurrent())
    assert_same(model, loaded)
    assert torch.equal(loaded(inputs), model(inputs))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either ratio or target"),
        ({"ratio": 1.0}, "not a ratio"),
        ({"ratio": 0.5, "overrides": {"stem": -1.0}}, "not a ratio"),
        ({"target": {"watts": 0.5}}, "target must be one of"),
        ({"target": {"flops": 0.0}}, "target must be one of"),
        ({"ratio": 0.5, "round_to": 0}, "round_to"),
        ({"ratio": 0.5, "include": ["nothing*"]}, "matches no module"),
        ({"ratio": 0.5, "criterion": "nothing"}, "unknown criterion"),
        ({"ratio": 0.5, "exclude": ["*"]}, "nothing can be removed"),
        ({"ratio": 0.5, "criterion": "gradient"}, "needs a loss"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    model, inputs = case("residual")
    with pytest.raises(tersor.PruneError, match=message):
        prune_channels(model, inputs, **settings)


def test_wrong_input() -> None:
    model, _ = case("residual")
    with pytest.raises(tersor.PruneError, match="failed on the example input: RuntimeError"):
        prune_channels(model, torch.randn(2, 4), ratio=0.5)

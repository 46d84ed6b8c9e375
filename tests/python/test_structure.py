"""Structure edits: applied, undone when they fail, recorded, replayed, saved and loaded without the edited model."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_models import assert_same
from hostile import Parts
from torch import Tensor, nn

import tersor
from tersor import structure
from tersor.structure.narrow import from_mask, to_mask


class Net(nn.Module):
    """A convolution, a grouped one, batch norm, an LSTM, a stack of blocks and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5)) for _ in range(4))
        self.head = nn.Linear(5, 7, bias=False)
        self.embed = nn.Embedding(7, 5)
        self.embed.weight = self.head.weight
        self.heads = 4

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, height, width] to [batch, height * width, 7]."""
        x = self.depthwise(self.norm(self.conv(x))).flatten(2).transpose(1, 2)  # [batch, pixels, channels]
        x, _ = self.lstm(x)
        for block in self.blocks:
            x = block(x) + x
        return self.head(x) + self.embed.weight.sum()


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


def inputs() -> Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))


def mask(*keep: int, size: int) -> str:
    return to_mask(list(keep), size)


NARROW: dict[str, Any] = {
    "keeps": [mask(0, 2, 5, size=6), mask(0, 1, 3, size=5)],
    "cuts": {
        "conv.weight": {"0": 0},
        **{f"norm.{key}": {"0": 0} for key in ("weight", "bias", "running_mean", "running_var")},
        "depthwise.weight": {"0": 0},
        "depthwise.bias": {"0": 0},
        "lstm.weight_ih_l0": {"1": 0},
    },
    "modules": {"depthwise": {"groups": 3}, "": {"heads": 2}},
    "config": {},
}


def edited(seed: int = 0) -> Net:
    """A Net with one edit of every generic kind, and weights of its own."""
    model = net(seed)
    structure.edit(model, "narrow", NARROW)
    structure.edit(model, "drop_blocks", {"stack": "blocks", "drop": [1, 2]})
    structure.replace_module(model, "blocks.1.0", nn.Sequential(nn.Linear(5, 2, bias=False), nn.Linear(2, 5)))
    structure.replace_module(model, "norm", nn.Identity())
    structure.edit(model, "set_attributes", {"modules": {"": {"heads": 1}}, "config": {}})
    return model


def test_narrow_keeps_the_chosen_values_and_sizes_follow() -> None:
    model, fresh = net(), net()
    structure.edit(model, "narrow", NARROW)
    assert torch.equal(model.conv.weight, fresh.conv.weight[[0, 2, 5]])
    assert torch.equal(model.norm.running_var, fresh.norm.running_var[[0, 2, 5]])
    assert torch.equal(model.lstm.weight_ih_l0, fresh.lstm.weight_ih_l0[:, [0, 2, 5]])
    assert (model.conv.out_channels, model.norm.num_features, model.heads) == (3, 3, 2)
    assert (model.depthwise.in_channels, model.depthwise.out_channels, model.depthwise.groups) == (3, 3, 3)
    assert (model.lstm.input_size, model.lstm.hidden_size) == (3, 5)
    assert model.conv.weight.requires_grad
    assert model(inputs()).shape == (2, 20, 7)


def test_a_tied_tensor_is_cut_in_all_places() -> None:
    model = net()
    config = {"keeps": [mask(1, 4, size=7)], "cuts": {"head.weight": {"0": 0}}, "modules": {}, "config": {}}
    structure.edit(model, "narrow", config)
    assert model.embed.weight is model.head.weight
    assert (model.embed.num_embeddings, model.head.out_features) == (2, 2)


def test_drop_blocks_numbers_anew() -> None:
    model = net()
    first, last = model.blocks[0], model.blocks[3]
    structure.edit(model, "drop_blocks", {"stack": "blocks", "drop": [1, 2]})
    assert list(model.blocks.named_children()) == [("0", first), ("1", last)]


def test_masks() -> None:
    for keep in ([0], [12], [0, 7, 8, 12], list(range(13))):
        assert from_mask(to_mask(keep, 13), 13, "x") == keep


def test_a_failed_edit_changes_nothing() -> None:
    model = net()
    before = {**dict(model.named_modules()), **dict(model.named_parameters()), **dict(model.named_buffers())}
    config = {**NARROW, "modules": {"": {"nothing": 1}}}  # found only after the tensors were cut
    with pytest.raises(tersor.StructureError, match="no integer attribute 'nothing'"):
        structure.edit(model, "narrow", config)
    after = {**dict(model.named_modules()), **dict(model.named_parameters()), **dict(model.named_buffers())}
    assert after == before
    assert (model.conv.out_channels, model.lstm.input_size) == (6, 6)
    assert structure.records(model) == []
    assert model(inputs()).shape == (2, 20, 7)


def test_records_survive_copies() -> None:
    model = edited()
    kinds = ["narrow", "drop_blocks", "replace_module", "replace_module", "set_attributes"]
    for same in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [item["kind"] for item in structure.records(same)] == kinds
    structure.records(model).clear()
    assert len(structure.records(model)) == 5


def test_replay_gives_the_same_structure() -> None:
    model, fresh = edited(), net(1)
    structure.replay(fresh, structure.records(model))
    fresh.load_state_dict(model.state_dict())
    assert repr(fresh) == repr(model)
    assert torch.equal(fresh(inputs()), model(inputs()))
    structure.replay(fresh, structure.records(model))  # it has them already
    assert len(structure.records(fresh)) == 5
    with pytest.raises(tersor.StructureError, match="edits of its own already"):
        structure.replay(fresh, structure.records(model)[:1])


@pytest.mark.parametrize("memory", ["real", "parameters_on_meta", "meta"])
def test_file(tmp_path: Path, memory: str) -> None:
    model = edited()
    tersor.save(model, tmp_path / "net.tersor")
    if memory == "real":
        fresh = net(1)
    elif memory == "meta":
        with torch.device("meta"):
            fresh = Net()
    else:
        with tersor.checkpoint.parameters_on_meta():
            fresh = Net()
    loaded = tersor.load(tmp_path / "net.tersor", fresh)
    assert loaded is fresh
    assert_same(model, loaded)
    assert loaded.embed.weight is loaded.head.weight
    assert torch.equal(loaded(inputs()), model(inputs()))
    tersor.save(loaded, tmp_path / "again.tersor")
    assert (tmp_path / "again.tersor").read_bytes() == (tmp_path / "net.tersor").read_bytes()
    assert tersor.inspect(tmp_path / "net.tersor").edits[0] == "narrow"


def test_file_with_accelerated_layers(tmp_path: Path) -> None:
    model = edited()
    tersor.swap(model, force=True)
    tersor.save(model, tmp_path / "net.tersor")
    loaded = tersor.load(tmp_path / "net.tersor", net(1))
    assert_same(model, loaded)
    assert torch.equal(loaded(inputs()), model(inputs()))


def test_a_file_of_version_1_still_loads(tmp_path: Path) -> None:
    tersor.save(net(), tmp_path / "net.tersor")
    parts = Parts.of((tmp_path / "net.tersor").read_bytes())
    assert parts.manifest.pop("edits") == []
    parts.metadata["tersor.format_version"] = "1"
    (tmp_path / "old.tersor").write_bytes(parts.pack())
    assert_same(net(), tersor.load(tmp_path / "old.tersor", net(1)))
    assert tersor.inspect(tmp_path / "old.tersor").format_version == 1


def test_a_file_that_does_not_fit_leaves_the_model_alone(tmp_path: Path) -> None:
    tersor.save(edited(), tmp_path / "net.tersor")
    fresh = net(1)
    fresh.head = nn.Linear(5, 8, bias=False)
    before = {**dict(fresh.named_modules()), **dict(fresh.named_parameters())}
    with pytest.raises(tersor.CheckpointError, match=r"'head\.weight' is"):
        tersor.load(tmp_path / "net.tersor", fresh)
    assert {**dict(fresh.named_modules()), **dict(fresh.named_parameters())} == before
    assert structure.records(fresh) == []


def test_save_refuses_edits_of_a_part(tmp_path: Path) -> None:
    model = net()
    structure.edit(model.blocks, "drop_blocks", {"stack": "", "drop": [0]})
    with pytest.raises(tersor.CheckpointError, match="'blocks' was edited on its own"):
        tersor.save(model, tmp_path / "net.tersor")


OF_TORCH = [name for name, known in structure.FLOAT_MODULES.items() if known.cls.__module__.startswith("torch.")]


@pytest.mark.parametrize("name", sorted(OF_TORCH))
def test_every_float_module_describes_itself(name: str) -> None:
    makers: dict[str, Any] = {
        "Conv1d": lambda: nn.Conv1d(4, 6, 3, stride=2, padding="valid", groups=2, bias=False),
        "Conv2d": lambda: nn.Conv2d(4, 6, (3, 1), padding=(1, 0), dilation=2, padding_mode="reflect"),
        "Linear": lambda: nn.Linear(3, 4, bias=False),
        "Embedding": lambda: nn.Embedding(9, 2, padding_idx=1),
        "BatchNorm1d": lambda: nn.BatchNorm1d(3, momentum=None),
        "BatchNorm2d": lambda: nn.BatchNorm2d(3, eps=1e-3, affine=False),
        "GELU": lambda: nn.GELU("tanh"),
    }
    made = makers.get(name, lambda: structure.build_module({"type": name, "config": {}}))()
    description = structure.describe_module(made)
    assert description["type"] == name
    again = structure.build_module(description)
    assert repr(again) == repr(made)
    assert list(again.state_dict()) == list(made.state_dict())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Embedding(3, 4, max_norm=1.0), "can't hold all settings of Embedding"),
        (nn.Bilinear(2, 3, 4), "can't hold a Bilinear; known: BatchNorm1d"),
        (nn.Sequential(nn.Bilinear(2, 3, 4)), "can't hold a Bilinear"),
    ],
)
def test_what_a_file_cannot_hold(module: nn.Module, message: str) -> None:
    model = net()
    with pytest.raises(tersor.StructureError, match=message):
        structure.replace_module(model, "conv", module)
    assert isinstance(model.conv, nn.Conv2d)


def test_bert_is_built_from_the_file_and_edited(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers", reason="needs the extra tersor[transformers]")
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.BertConfig(**sizes, intermediate_size=24, max_position_embeddings=20)
    model = transformers.BertModel(config).eval()
    structure.edit(model, "drop_blocks", {"stack": "encoder.layer", "drop": [1, 3]})
    assert model.config.num_hidden_layers == 2
    tersor.save(model, tmp_path / "bert.tersor")
    loaded: Any = tersor.load(tmp_path / "bert.tersor")
    assert loaded.config.num_hidden_layers == 2
    assert_same(model, loaded)
    tokens = torch.tensor([[1, 5, 49, 7], [0, 3, 3, 8]])
    assert torch.equal(loaded(tokens).last_hidden_state, model(tokens).last_hidden_state)

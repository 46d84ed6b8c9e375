"""Simpler structure: fewer blocks, smaller kernels, folded batch norms; each saves and loads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_models import assert_same
from restructure_data import batches, images
from torch import Tensor, nn

import tersor
from tersor import structure
from tersor.restructure import drop_layers, fold_batch_norm, remove_identities


class Block(nn.Module):
    """x + scale * f(x): the smaller the scale, the smaller its influence."""

    def __init__(self, size: int, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] to the same."""
        return x + self.scale * torch.tanh(self.linear(x))


class Stacked(nn.Module):
    """Six blocks that keep their shape and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.num_layers = 7
        self.blocks = nn.ModuleList([nn.Linear(4, 8), *(Block(8, scale) for scale in (1, 0.1, 2, 0.01, 3, 0.5))])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 4] to [batch, 3]."""
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def make(cls: Any, *args: Any) -> Any:
    torch.manual_seed(0)
    return cls(*args).eval()


def test_blocks_of_least_influence_go() -> None:
    model = make(Stacked)
    kept = [model.blocks[i] for i in (0, 1, 3, 5, 6)]
    result = drop_layers(model, batches(16, 4), 2)
    assert set(result.dropped) == {"blocks.2", "blocks.4"}
    assert sorted(result.scores) == [f"blocks.{i}" for i in range(1, 7)]
    assert list(model.blocks) == kept
    assert model.num_layers == 5


def test_influence_is_one_minus_the_mean_cosine() -> None:
    model, data = make(Stacked), batches(16, 4)
    x = torch.cat([model.blocks[1](model.blocks[0](batch)) for batch in data])
    y = model.blocks[2](x)
    expected = 1 - float(nn.functional.cosine_similarity(x, y).detach().mean())
    assert drop_layers(model, data, 1).scores["blocks.2"] == pytest.approx(expected, rel=1e-4)


def test_by_loss_takes_what_costs_least() -> None:
    model, data = make(Stacked), batches(16, 4)
    wanted = [model(batch) for batch in data]

    def loss(changed: nn.Module, batch: Tensor) -> Tensor:
        place = next(i for i, other in enumerate(data) if other is batch)
        return (changed(batch) - wanted[place]).square().mean()

    costs = {}
    for index in range(1, 7):
        other = copy.deepcopy(model)
        del other.blocks[index]
        costs[f"blocks.{index}"] = sum(float(loss(other, batch)) for batch in data) / len(data)
    result = drop_layers(model, data, 1, by="loss", loss=loss)
    assert result.dropped == (min(costs, key=costs.__getitem__),)
    assert result.scores == pytest.approx(costs)


def test_by_name_and_wildcards() -> None:
    model = make(Stacked)
    assert drop_layers(model, batches(2, 4), names=["blocks.3"]).dropped == ("blocks.3",)
    result = drop_layers(model, batches(2, 4), 1, include=["blocks.[1-3]"], exclude=["blocks.2"])
    assert result.dropped[0] in ("blocks.1", "blocks.3")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 7}, "count = 7, but 6 blocks can be dropped: blocks.1, "),
        ({"count": 0}, "count = 0"),
        ({}, "either count or names"),
        ({"names": ["blocks.0"]}, "'blocks.0' is no block that keeps its shape; those are blocks.1"),
        ({"count": 1, "stack": "nothing"}, "'nothing' is no nn.ModuleList"),
        ({"count": 1, "by": "loss"}, "needs loss"),
    ],
)
def test_wrong_settings_of_drop_layers(settings: dict[str, Any], message: str) -> None:
    model = make(Stacked)
    with pytest.raises(tersor.StructureError, match=message):
        drop_layers(model, batches(2, 4), **settings)
    assert len(model.blocks) == 7


class Needy(nn.Module):
    """Reads a value that its first block leaves behind."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(4, scale) for scale in (0.001, 0.5, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 4] to the same."""
        for block in self.blocks:
            x = block(x)
        return x * self.get_submodule("blocks").get_submodule("2").scale


def test_what_the_model_needs_stays() -> None:
    model = make(Needy)
    with pytest.raises(tersor.StructureError, match="1 blocks can't be dropped"):
        drop_layers(model, batches(2, 4), 1)
    assert len(model.blocks) == 3
    assert structure.records(model) == []


@pytest.mark.parametrize("name", ["bert", "llama", "torch"])
def test_transformers(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    tokens = torch.tensor([[1, 5, 49, 7], [0, 3, 3, 8]])
    if name == "torch":
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        model: Any = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).eval()
        inputs: Any = torch.randn(2, 5, 8)
    else:
        transformers: Any = pytest.importorskip("transformers", reason="needs the extra tersor[transformers]")
        sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 4, "intermediate_size": 24}
        heads = {"num_attention_heads": 2, "max_position_embeddings": 20}
        cls = transformers.BertModel if name == "bert" else transformers.LlamaForCausalLM
        model = cls(cls.config_class(**sizes, **heads)).eval()
        inputs = {"input_ids": tokens, "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}
    result = drop_layers(model, [inputs], 2)
    assert len(result.dropped) == 2
    assert len(result.scores) == 4
    tersor.save(model, tmp_path / "model.tersor")
    if name == "torch":
        assert model.num_layers == 2
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        fresh = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        assert_same(model, tersor.load(tmp_path / "model.tersor", fresh))
    else:
        assert model.config.num_hidden_layers == 2
        loaded: Any = tersor.load(tmp_path / "model.tersor")
        assert_same(model, loaded)
        with torch.no_grad():
            assert torch.equal(loaded(**inputs)[0], model(**inputs)[0])
    if name == "llama":
        assert [block.self_attn.layer_idx for block in model.model.layers] == [0, 1]


# --- Batch norm.


class Norms(nn.Module):
    """Batch norms that can be folded, and some that can't."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Sequential(nn.Conv2d(6, 8, 3, groups=2), nn.Dropout(0.5), nn.BatchNorm2d(8, affine=False))
        self.shared = nn.Conv2d(8, 4, 1)
        self.after = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 5)
        self.last = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, h, w] to [batch, 5]."""
        y = self.shared(self.grouped(torch.relu(self.norm(self.conv(x)))))
        y = self.after(y) + y
        return self.last(self.linear(y.mean((2, 3))))


def norms() -> Norms:
    model: Norms = make(Norms)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.1, 3)
            if module.weight is not None:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.uniform_(module.bias, -1, 1)
    return model


def test_folding_and_what_stays() -> None:
    model = norms().double()
    (x,) = batches(4, 3, 7, 7, count=1)
    expected = model(x.double())
    result = fold_batch_norm(model, x.double())
    assert result.folded == {"norm": "conv", "last": "linear", "grouped.2": "grouped.0"}
    assert result.kept == {"after": "no layer feeds it alone"}
    torch.testing.assert_close(model(x.double()), expected, rtol=1e-13, atol=1e-13)
    assert model.conv.bias.dtype == torch.float64


def test_folding_stays_within_its_bound() -> None:
    """Against exact arithmetic: (n + 2) u (sum |s w x| + |shift|), for each output."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.BatchNorm1d(30)).eval()
    nn.init.uniform_(model[1].weight, -3, 3)
    nn.init.uniform_(model[1].bias, -3, 3)
    model[1].running_mean.uniform_(-2, 2)
    model[1].running_var.uniform_(1e-3, 2)
    x = torch.randn(50, 40)
    exact = copy.deepcopy(model).double()(x.double())
    fold_batch_norm(model, x)
    layer: Any = model[0]
    size = x.double().abs() @ layer.weight.double().abs().T + layer.bias.double().abs()
    assert bool(((model(x).double() - exact).abs() <= 42 * 2.0**-24 * size).all())


def test_folded_models_save_and_load(tmp_path: Path) -> None:
    model = norms()
    (x,) = batches(4, 3, 7, 7, count=1)
    fold_batch_norm(model, x)
    assert remove_identities(model) == ["grouped.1", "grouped.2"]
    tersor.save(model, tmp_path / "net.tersor")
    loaded = tersor.load(tmp_path / "net.tersor", norms())
    assert_same(model, loaded)
    assert torch.equal(loaded(x), model(x))


class Doubled(nn.Conv2d):
    """Computes something of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Uses the absolute weights."""
        return nn.functional.conv2d(2 * x, self.weight.abs(), self.bias)


class Padded(nn.Conv2d):
    """As the convolutions of EfficientNets: pads by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros at two sides only."""
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


def test_subclasses_are_folded_if_they_compute_what_their_class_does() -> None:
    x = torch.randn(4, 3, 5, 5)
    for cls, works in ((Padded, True), (Doubled, False)):
        torch.manual_seed(0)
        model = nn.Sequential(cls(3, 6, 2, bias=False), nn.BatchNorm2d(6)).eval()
        nn.init.uniform_(model[1].weight, -2, 2)
        nn.init.uniform_(model[1].bias, -2, 2)
        expected = model(x)
        if works:
            fold_batch_norm(model, x)
            assert isinstance(model[1], nn.Identity)
        else:
            with pytest.raises(tersor.StructureError, match=r"the outputs change by .* Exclude 0"):
                fold_batch_norm(model, x)
            assert structure.records(model) == []
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_nothing_to_fold() -> None:
    with pytest.raises(tersor.StructureError, match=r"no batch norm can be folded\. The model has none"):
        fold_batch_norm(nn.Sequential(nn.Linear(3, 4)), torch.randn(2, 3))


def test_identities_leave() -> None:
    model = nn.Sequential(
        nn.Linear(3, 4), nn.Dropout(), nn.Identity(), nn.Sequential(nn.Dropout()), nn.ReLU(), nn.Linear(4, 2)
    ).eval()
    x = torch.randn(5, 3)
    expected = model(x)
    assert remove_identities(model) == ["1", "2", "1.0"]
    assert [type(child).__name__ for child in model] == ["Linear", "Sequential", "ReLU", "Linear"]
    assert isinstance(model[1][0], nn.Identity)
    assert torch.equal(model(x), expected)


# --- Steps of recipes.


class Pictures(nn.Module):
    """A large kernel, batch norm, blocks that keep their shape, dropout, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 5, padding=2, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.head = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 5))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, h, w] to [batch, 5]."""
        x = torch.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.head(x.mean((2, 3)))


def test_a_recipe_of_all_of_them(tmp_path: Path) -> None:
    model = make(Pictures)
    before = copy.deepcopy(model)
    recipe = tersor.Recipe(
        [
            tersor.steps.ShrinkKernels(),
            tersor.steps.DropLayers(count=1),
            tersor.steps.PruneChannels(criterion="entropy", ratio=0.5),
            tersor.steps.FoldBatchNorm(),
            tersor.steps.Quantize(),
        ]
    )
    recipe.to_toml(tmp_path / "recipe.toml")
    assert tersor.Recipe.from_toml(tmp_path / "recipe.toml") == recipe
    (x,) = images(1)
    result = tersor.compress(model, recipe, x, calibration=images(3), force=True, progress=False)
    assert_same(model, before)
    small: Any = result.model
    assert (small.conv.kernel_size, small.conv.out_channels, len(small.blocks)) == ((3, 3), 8, 2)
    assert isinstance(small.norm, nn.Identity)
    assert small.head[0].out_features == 32
    assert any(note.startswith("dropped blocks.") for note in result.report.notes)
    tersor.save(small, tmp_path / "net.tersor")
    loaded = tersor.load(tmp_path / "net.tersor", make(Pictures))
    assert_same(small, loaded)
    assert torch.equal(loaded(x), small(x))


def test_targets_and_losses_in_recipes() -> None:
    model = make(Pictures)
    (x,) = images(1)
    recipe = tersor.Recipe(
        [
            tersor.steps.DropLayers(count=1, by="loss"),
            tersor.steps.PruneChannels(ratio=0.6, target="parameters", round_to=1, scope="global"),
        ],
        exclude=["head.0"],
    )
    result = tersor.compress(model, recipe, x, force=True, progress=False)
    small: Any = result.model
    assert small.head[0].out_features == 64
    whole = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.blocks[0].parameters())
    assert sum(p.numel() for p in small.parameters()) <= 0.4 * whole


@pytest.mark.parametrize(
    ("make_step", "message"),
    [
        (lambda: tersor.steps.DropLayers(), "either count or names"),
        (lambda: tersor.steps.DropLayers(count=0), "count = 0"),
        (lambda: tersor.steps.DropLayers(names="a"), "names = 'a'"),
        (lambda: tersor.steps.DropLayers(count=1, by="size"), "by = 'size'"),
        (lambda: tersor.steps.ShrinkKernels(method="none"), "method = 'none'"),
        (lambda: tersor.steps.ShrinkKernels(max_error=-1.0), "max_error = -1"),
        (lambda: tersor.steps.PruneChannels(ratio=1.0), "ratio = 1"),
        (lambda: tersor.steps.PruneChannels(round_to=0), "round_to = 0"),
        (lambda: tersor.steps.PruneChannels(target="watts"), "target = 'watts'"),
        (lambda: tersor.steps.PruneChannels(overrides={"a": 2}), "a = 2"),
        (lambda: tersor.steps.PruneChannels(width=1), "width = 1"),
    ],
)
def test_wrong_steps(make_step: Any, message: str) -> None:
    with pytest.raises(tersor.RecipeError, match=message):
        make_step()


def test_steps_need_something_to_run() -> None:
    with pytest.raises(tersor.RecipeError, match="pass example_inputs= or calibration="):
        tersor.compress(make(Pictures), tersor.Recipe([tersor.steps.FoldBatchNorm()]), force=True, progress=False)

"""Factorising layers: the methods against what they promise, ranks, whole models, recipes and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor import Recipe, RecipeError, steps
from tersor.errors import FactorizeError
from tersor.factorize import (
    CONV_METHODS,
    FactoredLinear,
    Inputs,
    RankRule,
    break_even,
    factorize,
    factorize_convolution,
    factorize_embedding,
    factorize_linear,
    truncated_svd,
)
from tersor.nn import LowRankInt8Linear, LowRankLinear


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def thin(n: int, k: int, rank: int) -> Tensor:
    return torch.randn(n, rank) @ torch.randn(rank, k) / rank**0.5


def low_rank_layer(n: int = 64, k: int = 96, rank: int = 8, noise: float = 0.0) -> nn.Linear:
    layer = nn.Linear(k, n)
    with torch.no_grad():
        layer.weight.copy_(thin(n, k, rank) + noise * torch.randn(n, k))
    return layer


def test_svd_is_the_best_in_its_rank() -> None:
    weight = torch.randn(20, 30)
    down, up = truncated_svd(weight, 7)
    _, s, _ = torch.linalg.svd(weight.double())
    assert float((weight - up @ down).double().norm()) == pytest.approx(float(s[7:].norm()), rel=1e-5)
    with pytest.raises(ValueError, match="rank: expected 1 to 20, got 21"):
        truncated_svd(weight, 21)


def test_weighted_svd_is_the_best_on_its_inputs() -> None:
    """The outputs change less than with plain SVD, by just what the singular values of W L say."""
    layer = nn.Linear(40, 24)
    x = torch.randn(500, 40) * torch.logspace(0, -2, 40) + torch.randn(40)
    inputs = Inputs(x.T @ x / len(x), x.mean(0))
    rule = RankRule("rank", 8)
    expected = layer(x)

    def off(module: nn.Module) -> float:
        return float(((module(x) - expected).norm() / (expected - expected.mean(0)).norm()).detach())

    plain = factorize_linear(layer, rule)[0]
    weighted, rank, error, reason = factorize_linear(layer, rule, inputs)
    assert (rank, reason) == (8, "")
    assert off(weighted) < 0.6 * off(plain)
    assert off(weighted) == pytest.approx(error, rel=0.02)


@pytest.mark.parametrize("kind", ["singular", "zero", "one direction"])
def test_weighted_svd_is_safe_where_the_covariance_is_singular(kind: str) -> None:
    layer = low_rank_layer(24, 40, rank=6)
    x = torch.randn(200, 40)
    x[:, 10:] = 0
    if kind != "singular":
        x = torch.zeros(200, 40) if kind == "zero" else torch.randn(200, 1) * torch.randn(1, 40)
    made, _, _, _ = factorize_linear(layer, RankRule("rank", 6), Inputs(x.T @ x / len(x), x.mean(0)))
    assert torch.isfinite(made.weight).all()
    torch.testing.assert_close(made(x), layer(x), rtol=1e-3, atol=1e-3)


def test_weights_and_covariances_that_are_not_finite_are_refused() -> None:
    layer = nn.Linear(5, 4)
    gram = torch.full((5, 5), torch.nan)
    with pytest.raises(ValueError, match="covariance of the inputs holds NaN"):
        factorize_linear(layer, RankRule("rank", 2), Inputs(gram, torch.zeros(5)))
    with torch.no_grad():
        layer.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="weight holds NaN"):
        factorize_linear(layer, RankRule("rank", 2))


def test_rank_rules() -> None:
    s = torch.tensor([4.0, 2, 1, 0.5, 0.25, 0.1])
    total = float(s.square().sum())
    for value in (0.5, 0.9, 0.99, 0.9999):
        rank = RankRule("energy", value, 1).choose(s, 1, 1)
        assert float(s[:rank].square().sum()) / total >= value
        assert float(s[: rank - 1].square().sum()) / total < value
    for value in (0.5, 0.1, 0.02):
        rank = RankRule("error", value, 1).choose(s, 1, 1)
        assert (float(s[rank:].square().sum()) / total) ** 0.5 <= value
    assert RankRule("energy", 0.5, 4).choose(s, 1, 1) == 4  # up
    assert RankRule("ratio", 0.5, 32).choose(torch.ones(300), 300 + 400, 300 * 400) == 64  # down, from 85.7
    assert RankRule("rank", 0.5, 32).choose(torch.ones(300), 1, 1) == 128
    assert RankRule("rank", 7).choose(torch.ones(300), 1, 1) == 7
    assert RankRule("ratio", 0.01).choose(torch.ones(20), 1, 1) == 20  # never more than there are
    assert break_even(300, 400) * 700 < 300 * 400 <= (break_even(300, 400) + 1) * 700
    for kind, value in (("energy", 1.5), ("ratio", 0), ("rank", 2.5), ("error", float("nan"))):
        with pytest.raises(ValueError, match=kind):
            RankRule(kind, value)


def test_a_rank_that_saves_nothing_leaves_the_layer() -> None:
    made, rank, _, reason = factorize_linear(nn.Linear(64, 64), RankRule("energy", 0.9999))
    assert made is None
    assert (rank, reason) == (64, "rank 64 needs more weights than the layer; 31 at most pay")


@pytest.mark.parametrize("method", CONV_METHODS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"stride": 2, "padding": 1}, {"padding": (1, 2), "dilation": 2}, {"padding": "same"}, {"bias": False}],
)
def test_convolutions_of_low_rank_are_found_again(method: str, settings: dict) -> None:
    module = nn.Conv2d(12, 16, (3, 5) if method == "spatial" else 3, **settings)
    high, wide = module.kernel_size
    with torch.no_grad():
        if method == "tucker2":
            weight = torch.einsum("oa,ib,abhw->oihw", torch.randn(16, 4), torch.randn(12, 4), torch.randn(4, 4, 3, 3))
        elif method == "spatial":
            weight = torch.einsum("irh,row->oihw", torch.randn(12, 4, high), torch.randn(4, 16, wide))
        else:
            weight = torch.einsum("or,ir,rhw->oihw", torch.randn(16, 4), torch.randn(12, 4), torch.randn(4, high, wide))
        module.weight.copy_(weight / weight.norm() * 3)
    chain, rank, error, reason = factorize_convolution(module, method, RankRule("rank", 4))
    assert (rank, reason) == (4, "")
    assert error < 1e-2 if method == "cp" else error < 1e-6
    x = torch.randn(2, 12, 11, 13)
    expected = module(x)
    assert float(((chain(x) - expected).norm() / expected.norm()).detach()) < (2e-2 if method == "cp" else 1e-5)


@pytest.mark.parametrize("rule", [RankRule("energy", 0.9, 4), RankRule("ratio", 0.4, 4), RankRule("error", 0.4, 4)])
@pytest.mark.parametrize("method", [*CONV_METHODS, "1x1"])
def test_convolutions_keep_to_the_rule(method: str, rule: RankRule) -> None:
    module = nn.Conv2d(24, 32, 1 if method == "1x1" else 3, stride=2)
    with torch.no_grad():
        area = module.kernel_size[0] ** 2
        decay = torch.logspace(0, -2, 24)
        module.weight.copy_((thin(32, 24 * area, 24) * decay.repeat_interleave(area)).view_as(module.weight))
    chain, _, error, reason = factorize_convolution(module, "tucker2" if method == "1x1" else method, rule)
    if rule.kind != "ratio":
        assert error <= (rule.value if rule.kind == "error" else (1 - rule.value) ** 0.5) + 1e-9
    if chain is None:
        assert "weights" in reason
        return
    before, after = (sum(p.numel() for p in part.parameters()) for part in (module, chain))
    assert after < before
    if rule.kind == "ratio":
        assert after <= 0.4 * before + 32
    x = torch.randn(3, 24, 9, 9)
    assert chain(x).shape == module(x).shape


def test_embeddings() -> None:
    module = nn.Embedding(200, 48, padding_idx=3)
    with torch.no_grad():
        module.weight.copy_(thin(200, 48, 8))
        module.weight[3] = 0
    made, rank, error, _ = factorize_embedding(module, RankRule("energy", 0.999, 8))
    assert rank == 8
    assert error < 1e-3
    tokens = torch.randint(0, 200, (4, 7))
    tokens[0, 0] = 3
    torch.testing.assert_close(made(tokens), module(tokens), rtol=1e-3, atol=1e-4)
    assert not made(tokens)[0, 0].any()
    with pytest.raises(ValueError, match="max_norm"):
        factorize_embedding(nn.Embedding(5, 4, max_norm=1.0), RankRule())


class Model(nn.Module):
    """Every kind of layer that can be factorised."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(120, 64)
        self.first = low_rank_layer(96, 64, 8, 1e-3)
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 24, 3, padding=1)
        self.head = nn.Linear(24, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.first(self.embed(tokens)).unsqueeze(1)  # [batch, 1, tokens, 96]
        return self.head(self.second(self.conv(x).relu()).mean((2, 3)))


def test_a_whole_model_and_its_file(tmp_path: Path) -> None:
    model, tokens = Model().eval(), torch.randint(0, 120, (2, 9))
    layers = {
        layer.name: layer
        for layer in factorize(
            model, RankRule("ratio", 0.5, 8), method="asvd", batches=[tokens], convolutions="tucker2", embeddings=True
        )
    }
    assert type(model.first) is FactoredLinear
    assert type(model.embed) is type(model.second) is nn.Sequential
    assert layers["head"].reason.startswith("rank 8 needs more weights")
    assert layers["first"].after < layers["first"].before
    assert [type(part) for part in (model.conv, model.head)] == [nn.Conv2d, nn.Linear]
    expected = model(tokens)
    tersor.save(model, tmp_path / "float")
    torch.testing.assert_close(tersor.load(tmp_path / "float", model=Model())(tokens), expected, rtol=0, atol=0)
    tersor.swap(model, include=["first"], force=True)
    assert type(model.first) is LowRankInt8Linear
    expected = model(tokens)
    tersor.save(model, tmp_path / "int8")
    loaded = tersor.load(tmp_path / "int8", model=Model())
    assert type(loaded.first) is LowRankInt8Linear
    assert torch.equal(loaded(tokens), expected)
    assert tersor.restore(model) == 1
    assert type(model.first) is FactoredLinear


@pytest.mark.parametrize("quantised", [False, True])
def test_a_recipe(quantised: bool, tmp_path: Path) -> None:
    model = nn.Sequential(low_rank_layer(96, 64, 8, 1e-3), nn.ReLU(), low_rank_layer(64, 96, 8, 1e-3)).eval()
    x = torch.randn(40, 64)
    chosen = [steps.Factorize(method="asvd", error=0.05), *([steps.Quantize(smooth=0)] if quantised else [])]
    result = tersor.compress(model, Recipe(chosen), x, force=True)
    cls = LowRankInt8Linear if quantised else LowRankLinear
    assert [type(result.model[0]), type(result.model[2])] == [cls, cls]
    assert result.model[0].rank == 32  # rounded up
    assert [row.layer for row in result.report.rows] == [cls.__name__] * 2
    assert any("factorised 2 of 2 layers by asvd" in note for note in result.report.notes)
    assert result.report.totals.output_error < 0.05
    tersor.save(result.model, tmp_path / "file")
    fresh = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)).eval()
    assert torch.equal(tersor.load(tmp_path / "file", model=fresh)(x), result.model(x))


def test_only_ranks_that_pay_here(monkeypatch: pytest.MonkeyPatch) -> None:
    from tersor.tune_lowrank import LowRankTuner

    def gains(self: object, layer: nn.Linear, rank: int, rows: object, *rest: object) -> dict[int, float]:
        return {4: 100 / rank}  # rank 64 is 1.56 times as fast, rank 96 not faster

    monkeypatch.setattr(LowRankTuner, "gains", gains)
    model = nn.Sequential(low_rank_layer(256, 256, 70, 1e-3)).eval()
    x = torch.randn(4, 256)
    for rule, left in (
        ({"energy": 0.9999}, nn.Linear),
        ({"speedup": 1.5}, LowRankLinear),
        ({"ratio": 0.6}, LowRankLinear),
    ):
        result = tersor.compress(model, Recipe([steps.Factorize(**rule)]), x, force=False, progress=False)
        assert isinstance(result.model[0], (left, FactoredLinear))
        if left is nn.Linear:
            assert type(result.model[0]) is nn.Linear
            (note,) = (note for note in result.report.notes if "factorised 0 of 1" in note)
            assert "rank 96 is 1.04 times as fast as the dense float32 layer at 4 rows; rank 64 would pay" in note
        else:
            assert result.model[0].rank == 64


def test_what_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(FactorizeError, match="no linear layer"):
        factorize(nn.Sequential(nn.ReLU()))
    with pytest.raises(FactorizeError, match="unknown method 'qr'"):
        factorize(model, method="qr")
    with pytest.raises(FactorizeError, match="looks at inputs"):
        factorize(model, method="asvd")
    with pytest.raises(RecipeError, match="give one of"):
        steps.Factorize(energy=0.9, ratio=0.5)
    with pytest.raises(RecipeError, match="energy"):
        steps.Factorize(energy=2)
    with pytest.raises(RecipeError, match="needs calibration data"):
        tersor.compress(model, Recipe([steps.Factorize(method="asvd")]), force=True)
    with pytest.raises(RecipeError, match="force=True forbids"):
        tersor.compress(model, Recipe([steps.Factorize(speedup=1.5)]), force=True)
    text = '[[steps]]\nstep = "factorize"\nmethod = "asvd"\nenergy = 0.95\nconvolutions = "cp"\n'
    assert Recipe.from_toml_text(text).steps == (steps.Factorize("asvd", energy=0.95, convolutions="cp"),)

"""Encoder blocks pruned and solved one after another: exact counts, zeros, nearer to the float model than SparseGPT."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor import PruneError, Recipe, RecipeError, SwapError, steps
from tersor.prune import Pruner, parse_pattern
from tersor.prune.blockwise import prune_blocks, solve_layer
from tersor.prune.layers import PrunableLayer

transformers = pytest.importorskip("transformers")


def bert(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    model: nn.Module = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=99)).eval()
    with torch.no_grad():
        for parameter in model.get_submodule("encoder").parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def pre_norm() -> nn.Module:
    torch.manual_seed(3)
    settings: dict[str, Any] = {"patch_size": 4, "image_size": 16, "num_channels": 1}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.ViTConfig(**sizes, **settings)
    model: nn.Module = transformers.ViTModel(config, add_pooling_layer=False).eval()
    return model


def texts(*lengths: int) -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    found = []
    for length in lengths:
        mask = torch.arange(length) < torch.randint(2, length + 1, (12, 1))
        found.append({"input_ids": torch.randint(99, (12, length)), "attention_mask": mask.long()})
    return found


def linears(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if type(layer) is nn.Linear and "pooler" not in name]


def distance(model: nn.Module, whole: nn.Module, batch: dict[str, Tensor]) -> float:
    keep = batch.get("attention_mask", torch.ones(1)).bool()
    with torch.inference_mode():
        found, wanted = (each(**batch).last_hidden_state for each in (model, whole))
    if "attention_mask" in batch:
        found, wanted = found[keep], wanted[keep]
    return float((found - wanted).square().sum() / wanted.square().sum())


@pytest.mark.parametrize("pattern", ["1x4", "unstructured", "2:4"])
def test_it_is_nearer_to_the_float_model_than_layers_pruned_alone(pattern: str) -> None:
    whole, batches, unseen = bert(), texts(10, 16, 7, 16), texts(16)[0]
    solved, alone = copy.deepcopy(whole), copy.deepcopy(whole)
    names = linears(whole)
    result = prune_blocks(solved, batches, parse_pattern(pattern), dict.fromkeys(names, 0.5))
    Pruner(
        alone,
        criterion="sparsegpt",
        pattern=pattern,
        sparsity=None if ":" in pattern else 0.5,
        schedule="one_shot",
        include=["encoder.*"],
        calibration=batches,
    ).finish()
    assert [layer.name for layer in result.layers] == names
    for name in names:
        weight = solved.get_parameter(f"{name}.weight")
        assert int(weight.eq(0).sum()) == weight.numel() // 2
    assert distance(solved, whole, unseen) < 0.7 * distance(alone, whole, unseen)


def test_nothing_removed_changes_nothing() -> None:
    whole, batches = bert(), texts(9, 12)
    solved = copy.deepcopy(whole)
    prune_blocks(solved, batches, parse_pattern("1x4"), dict.fromkeys(linears(whole), 0.0))
    assert distance(solved, whole, batches[0]) < 1e-8


def test_pre_norm_blocks() -> None:
    whole = pre_norm()
    batches = [{"pixel_values": torch.randn(24, 1, 16, 16)} for _ in range(3)]
    solved, alone = copy.deepcopy(whole), copy.deepcopy(whole)
    prune_blocks(solved, batches[:2], parse_pattern("1x4"), dict.fromkeys(linears(whole), 0.5))
    more: dict[str, Any] = {"criterion": "sparsegpt", "pattern": "1x4", "sparsity": 0.5, "schedule": "one_shot"}
    Pruner(alone, include=linears(whole), calibration=batches[:2], **more).finish()
    assert distance(solved, whole, batches[2]) < distance(alone, whole, batches[2])


@pytest.mark.parametrize("bias", [True, False])
def test_what_stays_is_the_least_squares_solution(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(16, 6, bias=bias)
    x, y = torch.randn(200, 16) + 0.5, torch.randn(200, 6)
    layer = PrunableLayer("layer", linear)
    solve_layer(layer, x, y, parse_pattern("1x4"), 48, damping=1e-9)
    weight = linear.weight.detach()
    assert int((weight == 0).sum()) == 48
    ones = torch.ones(200, 1) if bias else torch.empty(200, 0)
    for row in range(6):
        kept = weight[row].nonzero().flatten()
        best = torch.linalg.lstsq(torch.cat([x[:, kept], ones], 1), y[:, row]).solution
        torch.testing.assert_close(weight[row, kept], best[: len(kept)], rtol=1e-3, atol=1e-4)
        if bias:
            torch.testing.assert_close(linear.bias[row].detach(), best[-1], rtol=1e-3, atol=1e-4)


def test_in_a_recipe() -> None:
    whole, batches = bert(), texts(9, 12)
    prune = steps.Prune("sparsegpt", sparsity=0.5, overrides={"*.0.*": 0.0}, blockwise=True, epochs=0)
    recipe = Recipe([prune, steps.Quantize()], include=["encoder.*"])
    result = tersor.compress(whole, recipe, batches[0], calibration=batches, force=True, progress=False)
    assert any("33.3% of their weights" in note for note in result.report.notes)  # the first block keeps all
    with pytest.raises(PruneError, match="pooler"):
        tersor.compress(whole, Recipe([prune, steps.Quantize()]), batches[0], calibration=batches, force=True)


@pytest.mark.parametrize(
    "settings", [{"criterion": "magnitude", "epochs": 0}, {"epochs": 1}, {"epochs": 0, "schedule": "cubic"}]
)
def test_what_a_step_refuses(settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        steps.Prune(**{"criterion": "sparsegpt", **settings}, blockwise=True)


def test_data_that_cannot_be_used() -> None:
    model, pattern = bert(), parse_pattern("1x4")
    wanted = dict.fromkeys(linears(model), 0.5)
    with pytest.raises(PruneError, match="was not run"):
        prune_blocks(model, [], pattern, wanted)
    with pytest.raises(PruneError, match="float32"):
        prune_blocks(copy.deepcopy(model).half(), [], pattern, wanted)
    causal = {**texts(6)[0], "attention_mask": torch.ones(12, 1, 6, 6).tril().bool()}
    with pytest.raises(PruneError, match="more than padding"):
        prune_blocks(model, [causal], pattern, wanted)
    with pytest.raises(SwapError, match="calibration"):
        prune_blocks(model, [{"nothing": torch.ones(1)}], pattern, wanted)
    layer = PrunableLayer("layer", nn.Linear(8, 8))
    with pytest.raises(PruneError, match="NaN"):
        solve_layer(layer, torch.full((4, 8), torch.nan), torch.ones(4, 8), pattern, 32)

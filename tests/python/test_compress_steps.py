"""Recipes of several steps: what each costs, training within them, and going on after an interruption."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from distill_models import Pictures, make, pictures
from torch import Tensor, nn

import tersor
from tersor import Recipe, RecipeError, steps
from tersor.footprint import operations
from tersor.modules import memory_bytes
from tersor.nn import SparseLinear
from tersor.prune import KeptZeros, Pruner
from tersor.recipe import Step

EXAMPLE = pictures(1)[0][0]
TRAIN = [batch[0] for batch in pictures(6)]
PRUNE = steps.Prune(pattern="1x4", sparsity=0.5, epochs=2, schedule="linear")
DISTILL = steps.Distill(losses=["match", {"loss": "hidden", "layers": "uniform"}], epochs=3, learning_rate=1e-3)
ALL = Recipe([PRUNE, DISTILL, steps.Quantize()])


def wide() -> Pictures:
    return make(Pictures, 24)


def run(recipe: Recipe, model: nn.Module, train: Any = TRAIN, **settings: Any) -> Any:
    return tersor.compress(model, recipe, EXAMPLE, train=train, force=True, progress=False, **settings)


def same(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


def test_a_distill_step_trains_and_zeros_stay() -> None:
    model = wide()
    result = run(Recipe([PRUNE, DISTILL]), model)
    assert isinstance(result.model.head, SparseLinear)
    weight = result.model.head.weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert any(note.startswith("distilled by match, hidden for 18 steps, loss ") for note in result.report.notes)
    pruned = run(Recipe([PRUNE]), model)
    assert not torch.equal(pruned.model.head.weight, weight)
    before, after = pruned.report.totals.output_error, result.report.totals.output_error
    assert after < before


def test_every_step_has_its_row() -> None:
    model = wide()
    seen: list[float] = []

    def evaluate(judged: nn.Module) -> float:
        assert not judged.training
        seen.append(-float((judged(EXAMPLE) - model(EXAMPLE)).detach().square().mean()))
        return seen[-1]

    result = run(ALL, model, evaluate=evaluate)
    report = result.report
    names = ["float", "prune", "distill", "replace layers"]
    assert [row.name for row in report.steps] == names
    assert [row.metric for row in report.steps] == seen
    assert report.steps[0].metric == 0
    start, pruned, _, last = report.steps
    assert pruned.parameters == start.parameters
    biases = 24 + 48  # of batch norms: zero before training
    assert start.nonzeros + biases - pruned.nonzeros == pytest.approx(0.5 * 48 * 5, abs=4)
    assert start.flops == pruned.flops
    assert last.flops == pytest.approx(start.flops - 0.5 * 2 * 8 * 48 * 5, abs=70)
    assert (start.bytes, last.bytes) == (memory_bytes(model), memory_bytes(result.model))
    assert report.to_dict()["steps"][1]["name"] == "prune"
    assert all(row.ms is None for row in report.steps)  # forced: nothing is measured
    timed = tersor.compress(
        nn.Sequential(nn.Linear(256, 256)).eval(),
        Recipe([steps.Prune()]),
        torch.randn(4, 256),
        progress=False,
    ).report.steps
    assert all(row.ms is not None and row.ms > 0 and row.float_ms is not None for row in timed[1:])


def test_operations_are_those_of_the_layers() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 7))
    expected = 2 * 5 * (3 * 4 * 4 * 2 * 9 + 48 * 7)
    x = torch.randn(5, 2, 6, 6)
    assert operations(model, x) == expected
    assert operations(model, x, {model[2]: 84}) == expected - 2 * 5 * 84
    tersor.swap(model, force=True)
    assert operations(model, x) == expected


class Interrupted:
    """Batches that stop with Ctrl-C at a count of batches over all epochs."""

    def __init__(self, stop: int | None) -> None:
        self.left = stop

    def __len__(self) -> int:
        return len(TRAIN)

    def __iter__(self) -> Any:
        for batch in TRAIN:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("stop", [3, 12, 14, 25])
def test_an_interrupted_recipe_goes_on(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tersor.training import resume

    monkeypatch.setattr(resume.time, "monotonic", iter(range(0, 10**9, 1000)).__next__)  # every write is due
    model = wide()
    before = copy.deepcopy(model.state_dict())
    expected = run(ALL, model)
    with pytest.raises(KeyboardInterrupt):
        run(ALL, model, Interrupted(stop), work=tmp_path)
    finished = (tmp_path / "progress.json").exists()
    assert finished == (stop >= 12)
    result = run(ALL, model, work=tmp_path)
    same(result.model, expected.model)
    assert result.report.notes == expected.report.notes
    assert [row.name for row in result.report.steps] == [row.name for row in expected.report.steps]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["progress.json", "step-2.tersor"]
    again = run(ALL, model, Interrupted(0), work=tmp_path)  # nothing is trained any more
    same(again.model, expected.model)


def test_a_work_folder_belongs_to_one_recipe_and_model(tmp_path: Path) -> None:
    run(Recipe([steps.Prune()]), wide(), None, work=tmp_path)
    with pytest.raises(RecipeError, match="belongs to another recipe"):
        run(Recipe([steps.Prune(sparsity=0.6)]), wide(), None, work=tmp_path)
    with pytest.raises(RecipeError, match="belongs to another model"):
        run(Recipe([steps.Prune()]), make(Pictures, 24, seed=3), None, work=tmp_path)
    (tmp_path / "step-1.tersor").write_bytes(b"half")
    with pytest.raises(RecipeError, match="can't be loaded"):
        run(Recipe([steps.Prune()]), wide(), None, work=tmp_path)
    (tmp_path / "progress.json").write_text(json.dumps([1]))
    with pytest.raises(RecipeError, match="something else"):
        run(Recipe([steps.Prune()]), wide(), None, work=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match="can't be used"):
        run(Recipe([steps.Prune()]), wide(), None, work=tmp_path / "file")


def test_orders_and_data_that_cannot_work() -> None:
    model = wide()
    with pytest.raises(RecipeError, match=r"step 2 .*'distill', can't work there: it changes the float model"):
        run(Recipe([steps.Quantize(), DISTILL]), model)
    with pytest.raises(RecipeError, match=r"step 2 .*'prune', can't work there.*'quantize' replaces the layers"):
        run(Recipe([steps.Quantize(), PRUNE]), model)
    with pytest.raises(RecipeError, match="quantised already"):
        run(Recipe([steps.Quantize(), steps.Quantize()]), model)
    with pytest.raises(RecipeError, match="distill step needs train data"):
        run(Recipe([DISTILL]), model, None)
    with pytest.raises(RecipeError, match="patience needs a metric"):
        run(Recipe([steps.Distill(patience=1)]), model)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('losses = ["kll"]', "step 'distill': 'kll' is not a known loss; did you mean 'kl'"),
        ("losses = []", "losses is empty"),
        ("losses = [3]", "None is not a known loss"),
        ('losses = [{loss = "kl", temperatur = 1}]', "has no 'temperatur'"),
        ("epochs = 0", "epochs = 0 is not a whole number from 1"),
        ("clip = -1", "clip = -1 is not a number from"),
        ("labels = true", "labels = True is neither"),
        ('rate = "exp"', "rate = 'exp' is not a known value"),
    ],
)
def test_what_a_recipe_refuses(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_toml_text(f'[[steps]]\nstep = "distill"\n{text}')


def test_a_distill_step_goes_through_a_file() -> None:
    losses = ["match", {"loss": "hint", "layers": {"stages.*": "stages.*"}, "weight": 0.5, "schedule": "fall"}]
    recipe = Recipe([steps.Distill(losses=losses, labels="y", autocast="bfloat16", patience=2)])
    assert Recipe.from_toml_text(recipe.to_toml()) == recipe
    assert hash(recipe) == hash(Recipe.from_toml_text(recipe.to_toml()))


def test_kept_zeros() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    nn.init.zeros_(model[2].weight)
    Pruner(model, pattern="unstructured", sparsity=0.5, include=["0"]).finish()
    kept, gone = KeptZeros(model), model[0].weight == 0
    trainer = torch.optim.AdamW(model.parameters(), lr=0.1)
    (model(torch.randn(4, 8)).sum() + model[2].weight.sum()).backward()
    trainer.step()
    kept.step()
    assert torch.equal(model[0].weight == 0, gone)
    assert bool((model[1].weight != 0).all())
    assert bool((model[2].weight != 0).all())  # all zeros: they were its first values, not a mask
    other = KeptZeros(model)
    other.load_state_dict(kept.state_dict())
    with pytest.raises(tersor.PruneError, match="other layers"):
        other.load_state_dict({"gone": {}})


def test_fake_quantisation_lives_through_distillation() -> None:
    from tersor.distill import fit
    from tersor.quantize.qat import QAT

    teacher, student = wide(), wide()
    qat = QAT(student, steps=12, include=["head"])
    settings: dict[str, Any] = {"epochs": 2, "progress": False, "mode": "eval", "companions": [qat]}
    result = fit(student, teacher, TRAIN, ["match", {"loss": "cosine", "layers": {"head": "head"}}], **settings)
    assert qat.count == len(result.losses) == 12
    assert qat.finish().accelerated == ("head",)
    x = EXAMPLE
    error: Tensor = (student(x) - teacher(x)).norm() / teacher(x).norm()
    assert float(error.detach()) < 0.2


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (steps.QAT(), steps.Prune(), "'qat' trains weights as they are rounded"),
        (steps.QAT(), steps.Factorize(), "'qat' trains weights as they are rounded"),
        (steps.QAT(), steps.FoldBatchNorm(), "'qat' trains weights as they are rounded"),
        (steps.QAT(), steps.Equalize(), "'qat' trains weights as they are rounded"),
        (steps.QAT(), steps.QAT(), "the model is quantised already"),
        (steps.Prune(), steps.Factorize(), "the factors of a pruned weight have no zeros"),
    ],
)
def test_orders_that_would_undo_a_step(before: Step, after: Step, reason: str) -> None:
    with pytest.raises(RecipeError, match=f"step 2 .*, '{after.name}', can't work there: {reason}"):
        Recipe([before, after]).check_order()
    Recipe([after, before] if before != after else [before]).check_order()


def test_distillation_follows_training_with_rounding() -> None:
    Recipe([steps.QAT(), steps.Distill()]).check_order()

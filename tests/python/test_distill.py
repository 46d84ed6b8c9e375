"""The loss module and its loop: pairing, projections, hooks, masks that live through it, students that learn."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from distill_models import Pictures, Texts, make, pictures, texts
from prune_models import accuracy, digits, hooks
from torch import Tensor, nn
from torch.nn import functional

from tersor import DistillError, TrainError
from tersor.distill import LOSSES, Distiller, FeatureLoss, fit
from tersor.distill.pairing import uniform
from tersor.prune import Pruner

NO_MAPS = ("pictures", "attention_map")
FEATURES = sorted(name for name, cls in LOSSES.items() if issubclass(cls, FeatureLoss))


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("pictures", "texts") for name in sorted(LOSSES) if (kind, name) != NO_MAPS],
)
def test_every_loss_teaches_a_smaller_student(name: str, kind: str) -> None:
    if kind == "pictures":
        student, teacher, batch = make(Pictures, 4), make(Pictures, 6, seed=1), pictures(1)[0]
    else:
        student, teacher = make(Texts, 2, 8, 2), make(Texts, 4, 16, 4, seed=1)
        batch = (*texts(1)[0].values(), torch.arange(6) % 5)
    whole, clean = copy.deepcopy(teacher.state_dict()), hooks(student)
    distiller = Distiller(student, teacher, [name], batch, labels=-1)
    trainer = torch.optim.Adam(distiller.parameters(), lr=0.01)
    distiller.train()
    values = []
    for _ in range(12):
        trainer.zero_grad()
        loss = distiller(batch)
        loss.backward()
        trainer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.8 * values[0]
    assert distiller.parts == {name: pytest.approx(values[-1])}
    assert all(torch.equal(value, whole[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert hooks(student) == clean
    assert hooks(teacher) == 0
    assert not any(key.startswith("teacher") for key in distiller.state_dict())
    assert (name in distiller.pairs) == (name in FEATURES)


def test_hooks_are_gone_also_after_an_error() -> None:
    student, teacher = make(Pictures, 4), make(Pictures, 6, seed=1)
    distiller = Distiller(student, teacher, ["hidden"], pictures(1)[0][0])
    with pytest.raises(RuntimeError):
        distiller(torch.zeros(2, 3, 12, 12))
    assert hooks(student) == hooks(teacher) == 0
    assert torch.backends.mha.get_fastpath_enabled()


def test_pairs() -> None:
    six = [f"t{i}" for i in range(6)]
    assert uniform(["a", "b", "c"], six) == [("a", "t1"), ("b", "t3"), ("c", "t5")]
    assert uniform(list("abcd"), six) == [("a", "t0"), ("b", "t2"), ("c", "t3"), ("d", "t5")]
    student, teacher, batch = make(Texts, 2), make(Texts, 4, seed=1), texts(1)[0]

    def pairs(layers: Any) -> list[tuple[str, str]]:
        return Distiller(student, teacher, [{"loss": "hidden", "layers": layers}], batch).pairs["hidden"]

    spread = [("blocks.0", "blocks.1"), ("blocks.1", "blocks.3")]
    assert pairs("auto") == pairs("uniform") == pairs({"blocks.*": "blocks.*"}) == spread
    assert pairs({"blocks.0": "blocks.2", "embed": "embed"}) == [("blocks.0", "blocks.2"), ("embed", "embed")]
    assert pairs("same_shape")[:2] == [("embed", "embed"), ("blocks.0.attention", "blocks.0.attention")]
    maps = Distiller(student, teacher, ["attention_map"], batch).pairs["attention_map"]
    assert maps == [("blocks.0.attention", "blocks.1.attention"), ("blocks.1.attention", "blocks.3.attention")]
    one, other = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4)), nn.Sequential(nn.ReLU(), nn.Linear(3, 4))
    found = Distiller(one, other, [{"loss": "cosine", "layers": "auto"}], torch.randn(5, 3)).pairs["cosine"]
    assert found == [("0", "1")]


def test_projections_only_where_they_are_needed() -> None:
    batch = texts(1)[0]
    same, narrow = make(Texts, 2), make(Texts, 2, 8)
    assert not Distiller(same, make(Texts, 4, seed=1), ["hidden"], batch).projections
    assert len(Distiller(same, make(Texts, 4, seed=1), ["hint"], batch).projections) == 2
    distiller = Distiller(narrow, make(Texts, 4, seed=1), ["hidden", {"loss": "cosine", "weight": 0.5}], batch)
    assert [tuple(part.weight.shape) for part in distiller.projections.values()] == [(16, 8)] * 4
    assert not any("projection" in key for key in narrow.state_dict())


@pytest.mark.parametrize(
    ("losses", "student", "message"),
    [
        (["hiden"], (2,), "did you mean 'hidden'"),
        ([], (2,), "at least one loss"),
        ([{"loss": "hidden", "layers": "some"}], (2,), r"'some' is not known.*student: embed \[6, 7, 16\].*teacher: "),
        (
            [{"loss": "hidden", "layers": {"block.*": "blocks.*"}}],
            (2,),
            r"'block\.\*' is no layer of the student.*blocks",
        ),
        ([{"loss": "hidden", "layers": {"blocks.0": "x"}}], (2,), r"'x' is no layer of the teacher.*blocks\.3"),
        (
            [{"loss": "hidden", "layers": {"blocks.*": "blocks.1"}}],
            (2,),
            r"are 2 layers of the student .*only 1 of the",
        ),
        ([{"loss": "hidden", "layers": {}}], (2,), "empty table"),
        ([{"loss": "fsp", "layers": {"blocks.0": "blocks.1"}}], (2,), "needs 2 pairs"),
        (
            [{"loss": "hidden", "layers": {"blocks.0": "head"}}],
            (2,),
            r"blocks\.0 \[6, 7, 16\] of the student with head \[6, 5\] of the teacher: they have 3 and 2 dimensions",
        ),
    ],
)
def test_what_is_refused_before_training(losses: Any, student: Any, message: str) -> None:
    with pytest.raises(DistillError, match=message):
        Distiller(make(Texts, *student), make(Texts, 4, seed=1), losses, texts(1)[0])


def test_more_that_is_refused() -> None:
    model, batch = make(Pictures, 4), pictures(1)[0]
    with pytest.raises(DistillError, match="the teacher itself"):
        Distiller(model, model, ["match"], batch[0])
    other = nn.Sequential(nn.Flatten(), nn.Linear(144, 6))
    with pytest.raises(DistillError, match=r"outputs \[8, 5\] of the student with \[8, 6\] of the teacher"):
        Distiller(model, other, ["kl"], batch[0])
    with pytest.raises(DistillError, match=r"finds no pairs.*student: 1 \[8, 6\]|finds no pairs"):
        Distiller(other, nn.Sequential(nn.Flatten(), nn.Linear(144, 7)), ["hidden"], batch[0])
    with pytest.raises(DistillError, match="no labels at 5"):
        Distiller(model, make(Pictures, 6), ["kl"], batch, labels=5)
    with pytest.raises(DistillError, match="only one"):
        Distiller(model, make(Pictures, 6), ["pkt"], batch[0][:1])
    with pytest.raises(DistillError, match="iterator"):
        fit(model, other, iter(pictures()), ["kl"])
    with pytest.raises(TrainError, match="patience needs evaluate"):
        fit(model, make(Pictures, 6), pictures(), ["kl"], labels=1, patience=1)


def test_weights_and_schedules() -> None:
    student, teacher, batch = make(Pictures, 4), make(Pictures, 6, seed=1), pictures(1)[0]
    losses = [{"loss": "kl", "weight": 2.0, "schedule": "fall"}, {"loss": "label", "weight": 0.5, "schedule": "rise"}]
    distiller = Distiller(student, teacher, losses, batch, labels=1).eval()
    for part in (0.0, 0.25, 1.0):
        distiller.at(part)
        total = float(distiller(batch).detach())
        parts = distiller.parts
        assert total == pytest.approx(2 * (1 - part) * parts["kl"] + 0.5 * part * parts["label"])
    assert parts["label"] == pytest.approx(functional.cross_entropy(student(batch[0]), batch[1]).item())


def test_the_students_own_loss_counts_as_label_loss() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.layer(x)
            return {"logits": logits} if labels is None else {"loss": logits.square().mean(), "logits": logits}

    student, batch = make(Own), {"x": torch.randn(5, 4), "labels": torch.zeros(5)}
    distiller = Distiller(student, make(Own, seed=1), ["label", "logits_mse"], batch)
    distiller(batch)
    assert distiller.parts["label"] == pytest.approx(student(batch["x"])["logits"].square().mean().item())


def test_modes() -> None:
    student, teacher, batch = make(Texts, 2), make(Texts, 4, seed=1), texts(1)[0]
    still = Distiller(student, teacher, ["hidden"], batch, mode="eval").train()
    assert torch.equal(still(batch), still(batch))
    assert still.training
    assert not student.training
    moving = Distiller(student, teacher, ["hidden"], batch).train()
    assert student.dropout.training
    assert not torch.equal(moving(batch), moving(batch))
    assert not teacher.training
    teacher.train()
    moving(batch)
    assert teacher.dropout.training
    student.train().dropout.eval()
    assert Distiller(student, teacher, ["hidden"], batch).training
    assert not student.dropout.training  # what the user set apart stays apart


def test_half_precision() -> None:
    student, teacher, batch = make(Texts, 2, 8).to(torch.bfloat16), make(Texts, 4, seed=1), texts(1)[0]
    loss = Distiller(student, teacher, ["hint", "kl"], batch)(batch)
    assert loss.dtype == torch.float32
    loss.backward()
    assert bool(torch.isfinite(student.head.weight.grad).all())
    spec = {"loss": "hint", "layers": {"0": "0"}}
    with pytest.raises(DistillError, match="has no parameters"):
        Distiller(nn.Sequential(nn.ReLU(), nn.ReLU()), nn.Sequential(nn.ReLU(), nn.ReLU()), [spec], torch.ones(2, 3))


def test_fit_teaches_on_unlabelled_data_and_masks_live_on() -> None:
    torch.manual_seed(0)
    batches, test = digits()
    teacher = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    trainer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    for x, y in batches * 6:
        trainer.zero_grad()
        functional.cross_entropy(teacher(x), y).backward()
        trainer.step()
    student = copy.deepcopy(teacher).requires_grad_(False)
    pruner = Pruner(student, sparsity=0.9, include=["0"])
    once = accuracy(student, test)
    seen: list[float] = []

    def evaluate(model: nn.Module) -> float:
        assert model is student
        seen.append(accuracy(model, test))
        return seen[-1]

    result = fit(
        student,
        teacher,
        [batch[0] for batch in batches],
        [{"loss": "kl", "temperature": 2.0}, {"loss": "hidden", "layers": "same_shape"}],
        epochs=6,
        companions=[pruner],
        evaluate=evaluate,
        rate="cosine",
        warmup=0.1,
        clip=1.0,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3),
        progress=False,
    )
    assert pruner.finish().sparsity == pytest.approx(0.9, abs=0.01)
    assert result.trained.values == seen
    assert accuracy(student, test) == max(seen) > once + 0.05
    assert max(seen) > accuracy(teacher, test) - 0.03
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in student.parameters())
    assert len(result.losses) == 6 * len(batches)
    assert result.losses[-1] < result.losses[0]


def test_fit_is_the_same_with_the_same_seed() -> None:
    def run(**settings: Any) -> Tensor:
        student = make(Texts, 2)
        fit(student, make(Texts, 4, seed=1), texts(), ["hidden"], epochs=2, progress=False, **settings)
        return student.head.weight.detach() + student.blocks[1].out.weight.detach().sum()

    one, expected = run(), torch.rand(3)
    torch.manual_seed(1)
    make(Texts, 4, seed=1)
    assert torch.equal(torch.rand(3), expected)  # the user's random numbers are left alone
    assert torch.equal(one, run())
    assert not torch.equal(one, run(seed=1))
    assert torch.isfinite(run(autocast=torch.bfloat16, accumulate=2)).all()


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("room", [1.0, 1e-7])
def test_a_teacher_that_is_remembered_runs_once_for_each_batch(autocast: torch.dtype | None, room: float) -> None:
    student, teacher, batches = make(Texts, 2, 8, 2), make(Texts, 4, 16, 4, seed=1), texts(3)
    given: dict[str, Any] = {"epochs": 3, "autocast": autocast, "mode": "eval", "progress": False}
    calls = []
    teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    losses = ["hidden", "match"]
    results = {}
    for memory in (0.0, room):
        calls.clear()
        result = fit(copy.deepcopy(student), teacher, batches, losses, memory_gb=memory, **given)
        results[memory] = (result.losses, len(calls))
    (plain, often), (remembered, seldom) = results.values()
    assert often - seldom == (6 if room == 1.0 else 0)
    assert remembered == pytest.approx(plain, rel=2e-2 if autocast else 0.0, abs=0.0)
    if autocast:  # rounded alike whether there is room or not, in the first epoch and later
        assert remembered == fit(copy.deepcopy(student), teacher, batches, losses, memory_gb=1e-12, **given).losses

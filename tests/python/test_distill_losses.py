"""Every loss: the contract that all keep, and the papers' formulas written out slowly."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tersor import DistillError
from tersor.distill import (
    FSP,
    KL,
    LOSSES,
    PKT,
    AttentionTransfer,
    DecoupledKD,
    FeatureLoss,
    Given,
    Label,
    OutputLoss,
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
    make_loss,
    register_loss,
)
from tersor.distill.losses import to_spec

NAMES = sorted(LOSSES)
LABELS = torch.tensor([0, 3, 1, 1, 4, 2])
MASK = torch.arange(5) < torch.tensor([[5], [3], [1], [4], [5], [2]])  # [6, 5]


def example(name: str, seed: int, tokens: bool = False) -> list[Tensor]:
    """Features or outputs that a loss accepts: two layers of them for features."""
    generator = torch.Generator().manual_seed(seed)
    if name == "attention_map":
        return [torch.rand(6, 3, 5, 5, generator=generator) for _ in range(2)]
    shape = (6, 5, 8) if tokens else (6, 8, 3, 3) if issubclass(LOSSES[name], FeatureLoss) else (6, 8)
    return [torch.randn(shape, generator=generator) for _ in range(2)]


def value(name: str, student: list[Tensor], teacher: list[Tensor], given: Given) -> Tensor:
    loss = make_loss(name)
    if isinstance(loss, FeatureLoss):
        return loss.total(student, teacher, given)
    assert isinstance(loss, OutputLoss)
    return loss.value(student[0], teacher[0], given)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_zero_for_equals_and_above_with_gradients_for_others(name: str, tokens: bool) -> None:
    labels = LABELS[:, None].expand(6, 5) if tokens else LABELS
    given = Given(MASK if tokens else None, labels)
    student, teacher = example(name, 0, tokens), example(name, 1, tokens)
    if name != "label":
        assert abs(float(value(name, teacher, teacher, given))) < 1e-6
    for tensor in student:
        tensor.requires_grad_(True)
    found = value(name, student, teacher, given)
    assert found.shape == ()
    assert math.isfinite(float(found.detach()))
    assert float(found.detach()) > 1e-6
    found.backward()
    gradient = student[0].grad
    assert gradient is not None
    assert bool(torch.isfinite(gradient).all())
    assert bool(gradient.any())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "label"])
def test_equal_features_give_finite_gradients(name: str) -> None:
    teacher = example(name, 1)
    student = [tensor.clone().requires_grad_() for tensor in teacher]
    value(name, student, teacher, Given()).backward()
    assert bool(torch.isfinite(student[0].grad).all())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "label"])
def test_padded_tokens_do_not_count(name: str) -> None:
    student, teacher = example(name, 0, True), example(name, 1, True)
    given = Given(MASK)
    before = value(name, student, teacher, given)
    for tensor in (*student, *teacher):
        rows = tensor if tensor.dim() == 3 else tensor.transpose(1, 2)  # attention maps: [batch, tokens, heads, tokens]
        rows[~MASK] = 7.0 * torch.rand_like(rows[~MASK])
    torch.testing.assert_close(value(name, student, teacher, given), before)


def test_each_loss_has_its_file_and_its_source() -> None:
    files = [inspect.getfile(cls) for cls in LOSSES.values()]
    assert len(set(files)) == len(files)
    assert all(len(cls.source) > 20 for cls in LOSSES.values())


@pytest.mark.parametrize("name", NAMES)
def test_specs_go_there_and_back(name: str) -> None:
    loss = make_loss({"loss": name, "weight": 2, "schedule": "fall"})
    assert make_loss(to_spec(loss)) == loss
    assert to_spec(loss) == {"loss": name, "weight": 2.0, "schedule": "fall"}
    assert (loss.factor(0.0), loss.factor(0.75)) == (2.0, 0.5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kll", r"'kll' is not a known loss; did you mean 'kl'\?; known: attention_map, "),
        ({}, "None is not a known loss"),
        ({"loss": "kl", "temperatur": 2.0}, "'kl' has no 'temperatur'; did you mean 'temperature'"),
        ({"loss": "kl", "temperature": 0}, r"temperature = 0\.0 is not a number above 0"),
        ({"loss": "kl", "weight": math.nan}, "weight = nan is not"),
        ({"loss": "kl", "schedule": "late"}, "unknown schedule 'late'; known: constant"),
    ],
)
def test_what_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(DistillError, match=message):
        make_loss(spec)
    with pytest.raises(ValueError, match="name of its own"):
        register_loss(type("Other", (KL,), {"__module__": __name__}))


# --- The definitions, written out.


def test_kl_by_hand() -> None:
    student, teacher = example("kl", 0)[0].double(), example("kl", 1)[0].double()
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        p, q = (theirs / 3).softmax(0), (ours / 3).softmax(0)
        total += float((p * (p / q).log()).sum()) * 9
    assert float(KL(temperature=3.0).value(student, teacher, Given())) == pytest.approx(total / 6, rel=1e-5)


def test_dkd_is_kl_taken_apart() -> None:
    """The paper's equation 6: KL = TCKD + (1 - p_target) * NCKD for every example."""
    student, teacher = example("dkd", 0)[0], example("dkd", 1)[0]
    for row in range(6):
        one, other, label = student[row : row + 1], teacher[row : row + 1], LABELS[row : row + 1]
        share = 1 - float((other / 2).softmax(1)[0, label])
        parts = DecoupledKD(temperature=2.0, alpha=1.0, beta=share).value(one, other, Given(labels=label))
        assert float(parts) == pytest.approx(float(KL(temperature=2.0).value(one, other, Given())), rel=1e-4)
    with pytest.raises(DistillError, match="3 labels for 6 rows"):
        DecoupledKD().value(student, teacher, Given(labels=LABELS[:3]))


def test_label_loss() -> None:
    logits = example("label", 0)[0]
    expected = functional.cross_entropy(logits, LABELS)
    assert torch.equal(Label().value(logits, logits, Given(labels=LABELS)), expected)
    soft = functional.one_hot(LABELS, 8).float()
    torch.testing.assert_close(Label().value(logits, logits, Given(labels=soft)), expected)
    own = torch.tensor(3.0)
    assert Label().value(logits, logits, Given(own=own)) is own
    with pytest.raises(DistillError, match="needs labels"):
        Label().value(logits, logits, Given())


def test_relations_by_hand() -> None:
    student, teacher = torch.randn(5, 4), torch.randn(5, 7)

    def distances(x: Tensor) -> Tensor:
        apart = torch.tensor([float((x[i] - x[j]).norm()) for i in range(5) for j in range(i + 1, 5)])
        return apart / apart.mean()

    def angles(x: Tensor) -> Tensor:
        def corner(i: int, j: int, k: int) -> float:
            if i in (j, k):
                return 0.0
            one, other = x[j] - x[i], x[k] - x[i]
            return float(one @ other / one.norm() / other.norm())

        return torch.tensor([corner(i, j, k) for i in range(5) for j in range(5) for k in range(5)])

    for loss, form in ((RelationalDistance(), distances), (RelationalAngle(), angles)):
        expected = functional.smooth_l1_loss(form(student), form(teacher))
        torch.testing.assert_close(loss.value(student, teacher, Given()), expected, rtol=1e-4, atol=1e-6)


def test_neighbours_and_similarities_by_hand() -> None:
    student, teacher = torch.randn(4, 3), torch.randn(4, 6)

    def neighbours(x: Tensor) -> Tensor:
        p = torch.zeros(4, 4)
        for i in range(4):
            for j in range(4):
                p[i, j] = 1e-7 if i == j else (functional.cosine_similarity(x[i], x[j], dim=0) + 1) / 2
        return p / p.sum(1, keepdim=True)

    p, q = neighbours(teacher), neighbours(student)
    expected = (p * (p / q).log()).sum() / 4
    torch.testing.assert_close(PKT().value(student, teacher, Given()), expected, rtol=1e-3, atol=1e-6)

    def similar(x: Tensor) -> Tensor:
        g = torch.tensor([[float(one @ other) for other in x] for one in x])
        return torch.stack([row / row.norm() for row in g])

    expected = (similar(student) - similar(teacher)).square().sum() / 4
    torch.testing.assert_close(SimilarityPreserving().value(student, teacher, Given()), expected)


def test_maps_and_flows_by_hand() -> None:
    student, teacher = (
        [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)],
        [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)],
    )

    def flow(one: Tensor, other: Tensor) -> Tensor:
        one = functional.avg_pool2d(one, 2)
        return torch.stack(
            [
                sum(one[b, :, y, x, None] * other[b, None, :, y, x] for y in range(2) for x in range(2)) / 4
                for b in range(2)
            ]
        )

    ours, theirs = flow(*student), flow(*teacher)
    expected = (ours - theirs).square().mean() / theirs.square().mean()
    torch.testing.assert_close(FSP().total(student, teacher, Given()), expected)

    def look(x: Tensor) -> Tensor:
        energy = x.square().sum(1).flatten(1)
        return energy / energy.norm(dim=1, keepdim=True)

    wide = torch.randn(2, 7, 8, 8)
    expected = (look(student[0]) - look(functional.avg_pool2d(wide, 2))).square().sum() / 2
    torch.testing.assert_close(AttentionTransfer().value(student[0], wide, Given()), expected)

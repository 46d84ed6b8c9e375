"""The loss module: a student, its teacher, and what they are compared by."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tersor import observe
from tersor.distill.losses import DistillLoss, FeatureLoss, Given, OutputLoss, make_loss
from tersor.distill.losses.registry import first_float
from tersor.distill.losses.shapes import channel_axis, project
from tersor.distill.memory import Answer, TeacherMemory
from tersor.distill.pairing import Pairs, objection, pair
from tersor.distill.taps import frozen, tapped, trace
from tersor.errors import DistillError

LossSpec = str | Mapping[str, Any] | DistillLoss


@dataclass(frozen=True)
class _Term:
    """One loss with the layers it compares, and which of them are projected."""

    key: str
    loss: DistillLoss
    pairs: Pairs


class Distiller(nn.Module):
    """A loss for one's own training loop: ``loss = distiller(batch)``; train ``distiller.parameters()``.

    The teacher is run in eval mode without gradients and is not changed; it is no submodule, so it is neither trained
    nor in the state dict. Hooks are on the models only while they run, so pruning masks, fake quantisation and
    ``torch.save`` never meet them. Projections are made here, trained along and thrown away with this object; the
    student never knows them.

    Args:
        student: the module that learns.
        teacher: the module it learns from.
        losses: names, mappings as in recipes (``{"loss": "kl", "temperature": 2.0, "weight": 0.5}``), or objects.
        example_inputs: one batch; both models run on it, to pair layers and check shapes before anything is trained.
        labels: where a batch has its labels: the key of a mapping or the index in a sequence. They are taken out of
            what the models are called with, but given to a student that is to return its own loss (a mapping's
            ``"labels"`` with the loss ``"label"``). None: the entry ``"labels"`` of a mapping, if it has one.
        mode: ``"train"``; ``"eval"`` keeps dropout off and running statistics as they are, as recovery wants it.
        seed: of the projections' first values.
        memory_gb: how many gigabytes of the teacher's answers are kept, so that a batch that comes again, in the next
            epoch, doesn't run it; see :class:`tersor.distill.memory.TeacherMemory`. 0 keeps none.

    Raises:
        DistillError: an unknown loss, layers or outputs that can't be paired.
        SwapError: a model failed on the example inputs.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        losses: LossSpec | Iterable[LossSpec],
        example_inputs: Any,
        *,
        labels: str | int | None = None,
        mode: Literal["train", "eval"] = "train",
        seed: int = 0,
        memory_gb: float = 0.0,
    ) -> None:
        super().__init__()
        if student is teacher:
            raise DistillError("the student is the teacher itself; give a copy: copy.deepcopy(teacher)")
        if mode not in ("train", "eval"):
            raise DistillError(f'mode = {mode!r} is not known; known: "train", "eval"')
        self.student = student
        self._teacher = (teacher,)  # in a tuple it is no submodule
        self._labels, self._mode = labels, mode
        self._part = 0.0
        self._memory = TeacherMemory(memory_gb) if memory_gb > 0 else None
        self._values: dict[str, Tensor] = {}
        made = [make_loss(loss) for loss in ([losses] if isinstance(losses, str | Mapping | DistillLoss) else losses)]
        if not made:
            raise DistillError("a distiller needs at least one loss")
        self._own = any(loss.name == "label" for loss in made)
        self.projections = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._terms = [self._term(index, loss, made, example_inputs) for index, loss in enumerate(made)]
        self.training = student.training
        if mode == "eval":
            student.eval()

    @property
    def teacher(self) -> nn.Module:
        """The module that the student learns from."""
        return self._teacher[0]

    @property
    def pairs(self) -> dict[str, Pairs]:
        """By the loss: which layers (student, teacher) it compares."""
        return {term.key: list(term.pairs) for term in self._terms if term.pairs}

    @property
    def parts(self) -> dict[str, float]:
        """By the loss: its value on the last batch, without its weight."""
        return {key: float(value) for key, value in self._values.items()}

    def at(self, part: float) -> None:
        """Say which part of the training is over, from 0 to 1, for weights with a schedule."""
        self._part = part

    def train(self, mode: bool = True) -> Distiller:
        """Training or eval mode; the student stays in eval mode where it was made with ``mode="eval"``."""
        super().train(mode)
        if self._mode == "eval":
            self.student.eval()
        return self

    def forward(self, batch: Any) -> Tensor:
        """The weighted sum of the losses, a scalar; only the student and the projections get gradients from it."""
        inputs, labels = self._split(batch)
        wanted = self._asked(inputs)
        with_labels = batch if self._own and isinstance(batch, Mapping) and "labels" in batch else inputs
        with tapped(self.student, self._names(0)) as ours:
            found = observe.call(self.student, with_labels)
        given = Given(_mask(inputs), labels, _own_loss(found) if self._own else None)
        values = []
        for term in self._terms:
            if isinstance(term.loss, FeatureLoss):
                value = term.loss.total(*self._features(term, term.loss, ours.outputs, wanted), given)
            else:
                assert isinstance(term.loss, OutputLoss)
                assert wanted.output is not None
                value = term.loss.value(_output(found, "student"), wanted.output, given)
            self._values[term.key] = value.detach()
            values.append(term.loss.factor(self._part) * value)
        return torch.stack(values).sum()

    def _term(self, index: int, loss: DistillLoss, made: Sequence[DistillLoss], example: Any) -> _Term:
        twice = sum(other.name == loss.name for other in made) > 1
        key = f"{loss.name}_{index}" if twice else loss.name
        if not isinstance(loss, FeatureLoss):
            self._check_outputs(loss, example)
            return _Term(key, loss, [])
        inputs, _ = self._split(example)
        ours, theirs = trace(self.student, inputs, loss.pick), trace(self.teacher, inputs, loss.pick)
        pairs = pair(loss, self.student, self.teacher, ours, theirs)
        if len(pairs) < loss.least:
            raise DistillError(f"loss {key!r} needs {loss.least} pairs of layers, there is {pairs}")
        first = next(self.student.parameters(), None)
        if first is None:
            raise DistillError(f"the student, a {type(self.student).__name__}, has no parameters to train")
        for mine, other in pairs:
            reason = objection(loss, ours[mine], theirs[other])
            if reason is not None:
                raise DistillError(
                    f"loss {key!r} can't compare {mine} {list(ours[mine])} of the student with {other} "
                    f"{list(theirs[other])} of the teacher: {reason}"
                )
            axis = channel_axis(len(ours[mine]))
            narrow, wide = ours[mine][axis], theirs[other][axis]
            if loss.projection == "always" or (loss.projection == "differ" and narrow != wide):
                self.projections[_slot(key, mine, other)] = nn.Linear(
                    narrow, wide, bias=False, device=first.device, dtype=first.dtype
                )
        return _Term(key, loss, pairs)

    def _check_outputs(self, loss: DistillLoss, example: Any) -> None:
        if loss.name == "label":
            return
        inputs, _ = self._split(example)
        ours, theirs = (
            tuple(_output(observe.run(model, inputs, "example_inputs"), side).shape)
            for model, side in ((self.student, "student"), (self.teacher, "teacher"))
        )
        if ours != theirs:
            raise DistillError(
                f"loss {loss.name!r} can't compare outputs {list(ours)} of the student with {list(theirs)} of the "
                "teacher"
            )

    def _asked(self, inputs: Any) -> Answer:
        """What the teacher answers, from memory where it was asked before."""
        known = None if self._memory is None else self._memory.find(inputs)
        if known is not None:
            return known
        with frozen(self.teacher), tapped(self.teacher, self._names(1)) as theirs:
            returned = observe.call(self.teacher, inputs)
        features: dict[Hashable, Tensor | None] = {}
        for term in self._terms:
            if isinstance(term.loss, FeatureLoss):
                features |= {(term.key, name): term.loss.pick(theirs.outputs.get(name)) for _, name in term.pairs}
        features_only = all(isinstance(term.loss, FeatureLoss) for term in self._terms)
        answer = Answer(None if features_only else _output(returned, "teacher"), features)
        return answer if self._memory is None else self._memory.keep(inputs, answer)

    def _features(
        self, term: _Term, loss: FeatureLoss, ours: Mapping[str, Any], theirs: Answer
    ) -> tuple[list[Tensor], list[Tensor]]:
        found, wanted = [], []
        for mine, other in term.pairs:
            one, two = loss.pick(ours.get(mine)), theirs.features.get((term.key, other))
            if one is None or two is None:
                missing = f"{mine} of the student" if one is None else f"{other} of the teacher"
                raise DistillError(f"loss {term.key!r}: {missing} was not run, or returned no feature, on this batch")
            slot = _slot(term.key, mine, other)
            found.append(project(self.projections[slot], one) if slot in self.projections else one)
            wanted.append(two)
        return found, wanted

    def _names(self, side: int) -> list[str]:
        return list(dict.fromkeys(names[side] for term in self._terms for names in term.pairs))

    def _split(self, batch: Any) -> tuple[Any, Any]:
        """What the models are called with, and the labels."""
        if self._labels is None:
            if isinstance(batch, Mapping) and "labels" in batch:
                return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]
            return batch, None
        try:
            labels = batch[self._labels]
        except (KeyError, IndexError, TypeError) as error:
            raise DistillError(f"a batch {observe.describe(batch)} has no labels at {self._labels!r}") from error
        if isinstance(batch, Mapping):
            return {key: value for key, value in batch.items() if key != self._labels}, labels
        index = int(self._labels) % len(batch)
        return tuple(value for at, value in enumerate(batch) if at != index), labels


def _slot(key: str, mine: str, other: str) -> str:
    return f"{key}:{mine}:{other}".replace(".", "/")  # names of modules hold no dots


def _mask(inputs: Any) -> Tensor | None:
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _named(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _own_loss(output: Any) -> Tensor | None:
    loss = _named(output, "loss")
    return loss.reshape(()) if isinstance(loss, Tensor) and loss.numel() == 1 else None


def _output(output: Any, side: str) -> Tensor:
    """The logits among a model's outputs, else the first floating output that is no loss."""
    logits = _named(output, "logits")
    if isinstance(logits, Tensor):
        return logits
    if isinstance(output, Mapping):
        output = {key: value for key, value in output.items() if key != "loss"}
    found = first_float(output)
    if found is None or found.dim() < 2:
        raise DistillError(f"the {side} returned no floating tensor [batch, ...]; a loss on features needs none")
    return found

"""Pruning MiniLM-L6 with recovery: a student is taught by the float model's hidden states on crops of texts.

On a GPU the whole optimiser step is recorded once per sequence length (CUDA graphs) and replayed: its several hundred
small kernels would otherwise wait for Python.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from minilm_task import CLS, SEP
from torch import Tensor, nn

from tersor.prune import Criterion, Cubic, OneShot, Pruner, PruneResult

LENGTHS = ((4, 0.08), (16, 0.12), (32, 0.2), (64, 0.25), (128, 0.25), (200, 0.1))
"""Sequence lengths of the recovery, [CLS] and [SEP] with them, and how often each is drawn."""

FIRST_WORD, VOCABULARY = 1996, 30522


@dataclass(frozen=True)
class Settings:
    """How to recover.

    Attributes:
        steps: optimiser steps; 0 prunes at once and leaves it at that.
        lr: the highest learning rate, reached after 3 % of the steps; it falls to zero at the end.
        tokens: per step.
        removals: in how many portions weights leave (cubic schedule); 1: all before the first step.
        pruning: the part of the steps in which weights leave.
        pooled: weight of one minus the cosine of the embeddings, beside the relative error of the hidden states.
    """

    steps: int = 0
    lr: float = 5e-4
    tokens: int = 4096
    removals: int = 1
    pruning: float = 0.5
    pooled: float = 4.0


class Crops:
    """Random pieces of texts, all of one length, so that nothing is padded; drawn without waiting for the device.

    Args:
        texts: token numbers; the first ``favoured`` of them make up a third of the pieces.
    """

    def __init__(self, texts: Sequence[np.ndarray], device: torch.device, favoured: int = 300) -> None:
        inner = [text[1:-1] for text in texts]
        self.lengths = torch.tensor([len(text) for text in inner], device=device)
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.flat = torch.from_numpy(np.concatenate(inner)).to(device)
        self.device, self.favoured = device, favoured
        self._fitting: dict[int, tuple[Tensor, Tensor]] = {}

    def draw(self, length: int, count: int, random: torch.Generator, replaced: float = 0.0) -> Tensor:
        """Token numbers [count, length]. Half of the pieces begin where their text does. In half of them a part
        ``replaced`` of the words gives way to others from the vocabulary: the float model has an answer to those too.
        """
        inside = length - 2
        if inside not in self._fitting:
            fit = (self.lengths >= inside).nonzero().flatten()
            self._fitting[inside] = (fit[fit < self.favoured], fit)
        at: dict[str, Any] = {"device": self.device, "generator": random}
        favoured, fit = self._fitting[inside]
        chosen = fit[torch.randint(len(fit), (count,), **at)]
        chosen[: count // 3] = favoured[torch.randint(len(favoured), (count // 3,), **at)]
        room = self.lengths[chosen] - inside
        offset = (torch.rand(count, **at) * (room + 1)).long() * torch.randint(2, (count,), **at)
        places = (self.starts[chosen] + offset)[:, None] + torch.arange(inside, device=self.device)
        words = torch.randint(FIRST_WORD, VOCABULARY, (count, inside), **at)
        other = (torch.rand(count, inside, **at) < replaced) & (torch.rand(count, 1, **at) < 0.5)
        ids = torch.empty(count, length, dtype=torch.int64, device=self.device)
        ids[:, :1], ids[:, -1:] = CLS, SEP
        ids[:, 1:-1] = torch.where(other, words, self.flat[places])
        return ids


def hidden(model: nn.Module, ids: Tensor) -> tuple[Tensor, ...]:
    """What each encoder layer puts out, [batch, tokens, 384] each."""
    states: tuple[Tensor, ...] = model(input_ids=ids, output_hidden_states=True).hidden_states
    return states[1:]


def pool(state: Tensor) -> Tensor:
    """Sentence embeddings of unpadded texts."""
    return nn.functional.normalize(state.mean(1), dim=1)


def teaching(student: nn.Module, teacher: nn.Module, ids: Tensor, pooled: float) -> Tensor:
    """The squared error of the hidden states relative to their variance, mean over layers, and the embeddings'
    ``pooled * (1 - cosine)``."""
    with torch.no_grad():
        wanted = torch.stack(hidden(teacher, ids))  # [layers, batch, tokens, 384]
    found = torch.stack(hidden(student, ids))
    errors = (found - wanted).square().mean(dim=(1, 2, 3)) / wanted.var(dim=(1, 2, 3))
    cosine = (pool(found[-1]) * pool(wanted[-1])).sum(1).mean()
    return errors.mean() + pooled * (1 - cosine)


Batch = tuple[Tensor, Tensor, Tensor]
"""Two neighbouring pieces of each text, [texts, tokens], and random signs [texts, 384]."""


def contrastive(model: nn.Module, batch: Batch) -> Tensor:
    """The two pieces of one text belong together (InfoNCE, temperature 0.05). Matching the float model's embeddings
    would not do for the gradient criterion: at the float model that loss has no gradient."""
    first, second = (pool(hidden(model, ids)[-1]) for ids in batch[:2])
    return nn.functional.cross_entropy(first @ second.T / 0.05, torch.arange(len(first), device=first.device))


def projection(model: nn.Module, batch: Batch) -> Tensor:
    """The embeddings along random signs. The mean of its squared gradients is the diagonal of the Gauss-Newton matrix
    of matching the float model's embeddings, which is what the Fisher criterion should know."""
    return (pool(hidden(model, batch[0])[-1]) * batch[2]).sum()


class Bench:
    """A float model, and a student that is pruned again and again, each time from the float weights.

    Args:
        texts: token numbers of the texts to calibrate and recover on.
        graphs: record the optimiser step (CUDA only).
    """

    def __init__(
        self, model: nn.Module, texts: Sequence[np.ndarray], device: torch.device, settings: Settings, graphs: bool
    ) -> None:
        self.teacher = model.eval().requires_grad_(False)
        self.student = copy.deepcopy(model)
        for parameter in self.student.encoder.parameters():  # type: ignore[union-attr]
            parameter.requires_grad_(True)
        self.settings, self.device, self.graphs = settings, device, graphs and device.type == "cuda"
        self.crops = Crops(texts, device)
        self.calibration = self._calibration()
        self.lr = torch.zeros((), device=device) if self.graphs else 0.0
        trained = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.0, fused=True, capturable=self.graphs)
        self._recorded: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def _calibration(self, batches: int = 24, size: int = 16, half: int = 62) -> list[Batch]:
        random = self._random(1)
        found = []
        for _ in range(batches):
            ids = self.crops.draw(2 * half + 2, size, random)
            first, second = (
                torch.cat([ids[:, :1], part, ids[:, -1:]], 1) for part in torch.split(ids[:, 1:-1], half, dim=1)
            )
            signs = torch.randint(2, (size, 384), generator=random, device=self.device) * 2.0 - 1
            found.append((first, second, signs))
        return found

    def run(
        self,
        criterion: str | Criterion,
        pattern: str,
        sparsity: float,
        watch: Callable[[int, float], None] = lambda step, loss: None,
        **more: Any,
    ) -> PruneResult:
        """Prune the student, with recovery where the settings have steps; ``self.student`` is the outcome.

        Args:
            watch: told the step and the loss, about a hundred times.
            more: further arguments of :class:`tersor.prune.Pruner`.
        """
        steps = self.settings.steps
        if steps and self.graphs:
            with tensor_floats():
                self._record_all()
        self._reset()
        last = round(steps * self.settings.pruning)
        gradual = steps and self.settings.removals > 1
        name = criterion if isinstance(criterion, str) else criterion.name
        pruner = Pruner(
            self.student,
            criterion=criterion,
            pattern=pattern,
            sparsity=None if ":" in pattern else sparsity,
            schedule=Cubic(last, max(1, last // self.settings.removals)) if gradual else OneShot(),
            include=["encoder.*"],
            calibration=self.calibration,
            loss=projection if name == "fisher" else contrastive,
            **more,
        )
        random, order = self._random(2), np.random.default_rng(2)
        lengths, chances = zip(*LENGTHS, strict=True)
        for step in range(steps):
            length = int(order.choice(lengths, p=chances))
            ids = self.crops.draw(length, self.settings.tokens // length, random, replaced=0.2)
            loss = self._step(ids, rate(step / steps) * self.settings.lr)
            pruner.step()
            if step % max(1, steps // 100) == 0:
                watch(step, float(loss))
        return pruner.finish()

    def _step(self, ids: Tensor, lr: float) -> Tensor:
        if isinstance(self.lr, Tensor):
            self.lr.fill_(lr)
        else:
            self.optimizer.param_groups[0]["lr"] = lr
        key = tuple(ids.shape)
        if key not in self._recorded:
            return self._train(ids)
        graph, static, loss = self._recorded[key]
        static.copy_(ids)
        graph.replay()
        return loss

    def _train(self, ids: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = teaching(self.student, self.teacher, ids, self.settings.pooled)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def _random(self, seed: int) -> torch.Generator:
        return torch.Generator(device=self.device).manual_seed(seed)

    def _record_all(self) -> None:
        if self._recorded:
            return
        random, graph = self._random(3), None
        for length, _ in LENGTHS:
            static = self.crops.draw(length, self.settings.tokens // length, random)
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self._train(static)
            torch.cuda.current_stream().wait_stream(side)
            self.optimizer.zero_grad(set_to_none=True)
            shared = None if graph is None else graph.pool()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=shared):
                loss = self._train(static)
            self._recorded[tuple(static.shape)] = (graph, static, loss)

    @torch.no_grad()
    def _reset(self) -> None:
        for ours, theirs in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
            ours.copy_(theirs)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()


@contextlib.contextmanager
def tensor_floats() -> Iterator[None]:
    """Matrix products in TF32 on GPUs that have it, for training; models are judged in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def rate(part: float) -> float:
    """The learning rate at a part of the steps: up in the first 3 %, then down to zero along a cosine."""
    return min(part / 0.03, 1.0) * 0.5 * (1 + float(np.cos(np.pi * part)))

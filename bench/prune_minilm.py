"""Every pruning criterion on MiniLM-L6: how much of the float model is left, without and with recovery.

    python bench/prune_minilm.py --sparsity 0.5 --sparsity 0.7
    python bench/prune_minilm.py --criterion wanda --pattern 1x4 --sparsity 0.8 --epochs 6

Needs gensim's files for the texts: lee_background.cor to calibrate and recover, lee.cor to judge. Columns: mean cosine
between the pruned and the float model's embeddings of the Lee texts, and the correlation with human ratings.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from tersor import demo_data
from tersor.prune import CRITERIA, Pruner, fit

Batch = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]
"""The two halves of some texts, which the contrastive loss compares; and the float model's embeddings of the first."""


def background() -> list[str]:
    """The 300 news texts of lee_background.cor.

    Raises:
        SystemExit: gensim's files are not installed.
    """
    spec = importlib.util.find_spec("gensim")
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(root, "test", "test_data", "lee_background.cor")
        if path.is_file():
            return [line for line in path.read_text(encoding="latin-1").splitlines() if line.strip()]
    raise SystemExit("the texts are missing; install them with: pip install --no-deps gensim==4.4.0")


def batches(model: nn.Module, tokenizer: Any, texts: list[str], size: int = 8, length: int = 64) -> list[Batch]:
    """Texts cut in the middle, as batches of token numbers with the float model's embeddings of the first halves."""
    halves = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in (text.split() for text in texts)]
    found = []
    for begin in range(0, len(halves), size):
        parts = [[" ".join(half[side]) for half in halves[begin : begin + size]] for side in (0, 1)]
        settings = {"padding": True, "truncation": True, "max_length": length, "return_tensors": "pt"}
        first, second = (dict(tokenizer(part, **settings)) for part in parts)
        with torch.no_grad():
            found.append((first, second, demo_data.embed(model, first)))
    return found


def contrastive(model: nn.Module, batch: Batch) -> Tensor:
    """The halves of one text belong together (InfoNCE, temperature 0.05). Matching the float model's own embeddings
    would not do for the gradient criteria: at the float model that loss has no gradient."""
    first, second, _ = batch
    logits = demo_data.embed(model, first) @ demo_data.embed(model, second).T / 0.05
    return nn.functional.cross_entropy(logits, torch.arange(len(logits)))


def matching(model: nn.Module, batch: Batch) -> Tensor:
    """One minus the cosine to the float model's embeddings."""
    return 1 - (demo_data.embed(model, batch[0]) * batch[2]).sum(1).mean()


def judge(model: nn.Module, lee: Mapping[str, Tensor], reference: Tensor, ratings: Tensor) -> str:
    """Cosine to the float model and correlation with the ratings, as text."""
    with torch.no_grad():
        found = demo_data.embed(model.eval(), lee)
    return f"{float((found * reference).sum(1).mean()):7.4f} {demo_data.pearson(found, ratings):7.4f}"


def main(
    criterion: Annotated[list[str], typer.Option(help="Criteria; all when left out.")] = [],  # noqa: B006
    pattern: Annotated[list[str], typer.Option(help="Patterns.")] = ["unstructured", "1x4"],  # noqa: B006
    sparsity: Annotated[list[float], typer.Option(help="Sparsities of the encoder's linear layers.")] = [0.5],  # noqa: B006
    epochs: Annotated[int, typer.Option(help="Epochs of gradual pruning with recovery; 0 prunes at once.")] = 0,
    texts: Annotated[int, typer.Option(help="Texts to calibrate and recover on, at most 300.")] = 64,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Prune MiniLM-L6 in many ways and print what is left of it."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    float_model, tokenizer = demo_data.load_model(demo_data.model_folder())
    judged = demo_data.find_texts()
    if judged.ratings is None:
        raise SystemExit("the texts are missing; install them with: pip install --no-deps gensim==4.4.0")
    lee = demo_data.tokens(tokenizer, list(judged.texts))
    with torch.no_grad():
        reference = demo_data.embed(float_model, lee)
    data = batches(float_model, tokenizer, background()[:texts])
    print(f"{'criterion':10} {'pattern':12} {'sparsity':8} {'cosine':>7} {'Lee':>7} {'seconds':>7}")
    print(f"{'(float)':10} {'':12} {'':8} {judge(float_model, lee, reference, judged.ratings)}")
    for shape in pattern:
        for level in sparsity:
            for name in criterion or sorted(CRITERIA):
                model, started = copy.deepcopy(float_model), time.perf_counter()
                settings: dict[str, Any] = {
                    "criterion": name,
                    "pattern": shape,
                    "sparsity": level,
                    "include": ["encoder.*"],
                    "calibration": data,
                }
                if epochs:
                    settings |= {"optimizer": _optimizer, "criterion_loss": contrastive}
                    fit(model, data, matching, epochs=epochs, **settings)
                else:
                    Pruner(model, loss=contrastive, **settings).finish()
                seconds = time.perf_counter() - started
                found = judge(model, lee, reference, judged.ratings)
                print(f"{name:10} {shape:12} {level:8.2f} {found} {seconds:7.1f}", flush=True)


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0)


if __name__ == "__main__":
    typer.run(main)

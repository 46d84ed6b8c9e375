"""SentenceTransformer.encode of MiniLM-L6 in float and after tersor.swap, taking turns: texts a second.

python bench/sentences.py --threads 2

Needs sentence-transformers. The texts are those of the Lee corpus, cut into sentences of many lengths.
"""

from __future__ import annotations

import copy
import importlib
from typing import Annotated, Any

import typer
from rich.console import Console


def main(
    threads: Annotated[int, typer.Option(min=1)] = 2,
    texts: Annotated[int, typer.Option(min=1)] = 256,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Measure and show."""
    import torch

    import tersor
    from tersor import demo_data
    from tersor.benchmark import interleave

    torch.set_num_threads(threads)
    package = importlib.import_module("sentence_transformers")
    layers = importlib.import_module("sentence_transformers.models")
    transformer = layers.Transformer(str(demo_data.model_folder()), max_seq_length=256)
    pooling = layers.Pooling(transformer.auto_model.config.hidden_size)
    model = package.SentenceTransformer(modules=[transformer, pooling], device="cpu")
    sentences = [part for text in demo_data.find_texts().texts for part in text.split(". ") if part][:texts]
    settings: dict[str, Any] = {"batch_size": 32, "show_progress_bar": False, "convert_to_tensor": True}
    swapped = copy.deepcopy(model)
    tersor.swap(swapped, progress=False)
    one, other = (each.encode(sentences, **settings) for each in (model, swapped))
    cosine = torch.nn.functional.cosine_similarity(one, other).mean()
    runs = {
        "float": lambda: model.encode(sentences, **settings),
        "swapped": lambda: swapped.encode(sentences, **settings),
    }
    seconds = {name: lap.median for name, lap in interleave(runs, rounds=rounds, warmup=1).items()}
    console = Console()
    for name, value in seconds.items():
        console.print(
            f"{name}: {len(sentences) / value:.0f} texts a second ({value * 1e3:.0f} ms for {len(sentences)})"
        )
    console.print(f"{seconds['float'] / seconds['swapped']:.2f} times as fast, mean cosine {cosine:.4f}")


if __name__ == "__main__":
    typer.run(main)

"""MiniLM-L6 end to end: float, torch's dynamic int8 and tersor's int8, interleaved in one run.

python bench/models.py --threads 2 --json out.json
"""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

SHAPES = ((1, 16), (1, 128), (8, 128), (32, 128))  # batch, tokens


def measure(threads: int, rounds: int, force: bool) -> dict[str, Any]:
    """Milliseconds per (batch, tokens) and engine, and the mean cosine of each engine's embeddings to float."""
    import torch

    import tersor
    from tersor import demo_data
    from tersor.benchmark import interleave
    from tersor.host import describe_host
    from tersor.torch_int8 import dynamic_int8, engines

    torch.set_num_threads(threads)
    model, tokenizer = demo_data.load_model(demo_data.model_folder())
    example = demo_data.tokens(tokenizer, list(demo_data.SENTENCES))
    recipe = tersor.Recipe([tersor.steps.Quantize(weights="int8")])
    result = tersor.compress(model, recipe, example_inputs=example, force=force)
    contestants = {"torch": model, "tersor": result.model}
    contestants |= {f"torch-int8/{engine}": dynamic_int8(model, engine) for engine in engines()}
    texts = demo_data.find_texts()
    rows = []
    with torch.inference_mode():
        embeddings = {
            name: torch.cat([demo_data.embed(one, demo_data.tokens(tokenizer, [text])) for text in texts.texts])
            for name, one in contestants.items()
        }
        cosine = {name: float((e * embeddings["torch"]).sum(1).mean()) for name, e in embeddings.items()}
        for batch, length in track(SHAPES, description="shapes", console=Console(stderr=True)):
            inputs = demo_data.random_batch(batch, length)
            runs = {name: functools.partial(one, **inputs) for name, one in contestants.items()}
            laps = interleave(runs, rounds=rounds, turn_seconds=0.05)
            rows.append({"batch": batch, "tokens": length, "ms": {n: lap.median * 1e3 for n, lap in laps.items()}})
    return {
        "command": f"python bench/models.py {' '.join(sys.argv[1:])}",
        "threads": threads,
        "host": describe_host(),
        "texts": texts.name,
        "cosine": cosine,
        "swapped": f"{result.report.totals.swapped} layers swapped",
        "rows": rows,
    }


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"MiniLM-L6, {result['threads']} thread(s), median milliseconds")
    engines = list(result["cosine"])
    for heading in ("batch x tokens", *engines, "tersor vs best torch int8"):
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        ratio = min(ms for name, ms in row["ms"].items() if "int8" in name) / row["ms"]["tersor"]
        times = [f"{row['ms'][name]:.2f}" for name in engines]
        table.add_row(f"{row['batch']} x {row['tokens']}", *times, f"{ratio:.2f}x")
    table.add_row("cosine to float", *(f"{result['cosine'][name]:.4f}" for name in engines), "")
    console = Console()
    console.print(table)
    console.print(f"{result['swapped']}; host: {result['host']}")


def main(
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 11,
    force: Annotated[bool, typer.Option(help="swap every layer, whatever the tuner says")] = False,
    out: Annotated[Path | None, typer.Option("--json", help="write the result here")] = None,
) -> None:
    """Times MiniLM-L6 in float, torch int8 and tersor int8 on this host."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    result = measure(threads, rounds, force)
    show(result)
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

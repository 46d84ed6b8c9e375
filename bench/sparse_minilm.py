"""MiniLM-L6 pruned in 1x4 blocks: the same weights as dense int8 and as sparse int8, taking turns in one run.

python bench/sparse_minilm.py --threads 2 --sparsity 0.8

Speed only: the weights are pruned by magnitude and not recovered; docs/pruning_results.md has what recovery reaches.
"""

from __future__ import annotations

import copy
import functools
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

SHAPES = ((1, 16), (1, 128), (8, 128), (32, 128))  # batch, tokens


def main(
    threads: Annotated[int, typer.Option(min=1)] = 2,
    sparsity: Annotated[float, typer.Option(min=0, max=0.99, help="Of the encoder's linear layers.")] = 0.8,
    rounds: Annotated[int, typer.Option(min=3)] = 7,
) -> None:
    """Measure and show; fails when the two models differ in a single bit."""
    import torch
    from torch import nn

    from tersor import demo_data, modules
    from tersor.benchmark import interleave
    from tersor.nn import Int8Linear, SparseInt8Linear
    from tersor.prune import Pruner

    torch.set_num_threads(threads)
    model, _ = demo_data.load_model(demo_data.model_folder())
    Pruner(model, criterion="magnitude", pattern="1x4", sparsity=sparsity, include=["encoder.*"]).finish(force=True)
    contestants = {"float": model.eval()}
    for name, layer in (("dense int8", Int8Linear), ("sparse int8", SparseInt8Linear)):
        made = copy.deepcopy(model)
        for old in [one for one in made.get_submodule("encoder").modules() if type(one) is nn.Linear]:
            modules.replace(made, old, layer.from_float(old))
        contestants[name] = made
    table = Table("batch x tokens", *contestants, "gain", title=f"milliseconds, {threads} thread(s), {sparsity:.0%}")
    with torch.inference_mode():
        for batch, length in SHAPES:
            inputs = demo_data.random_batch(batch, length)
            outputs = {name: one(**inputs).last_hidden_state for name, one in contestants.items()}
            if not torch.equal(outputs["dense int8"], outputs["sparse int8"]):
                raise SystemExit("the sparse model does not compute what the dense one computes")
            runs = {name: functools.partial(one, **inputs) for name, one in contestants.items()}
            ms = {name: lap.median * 1e3 for name, lap in interleave(runs, rounds=rounds, turn_seconds=0.05).items()}
            gain = ms["dense int8"] / ms["sparse int8"]
            table.add_row(f"{batch} x {length}", *(f"{value:.2f}" for value in ms.values()), f"{gain:.2f}x")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)

"""MiniLM-L6 with factored encoder layers: plain SVD, activation-aware SVD, and the latter in int8, at equal ranks.

    python bench/lowrank_minilm.py --json bench/results/lowrank-minilm.json --png bench/results/lowrank-minilm.png

Nothing is trained. Texts: see minilm_task.py; `--tokens FILE` keeps them, tokenised. The covariances come from texts
without labels that nothing is judged by.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from minilm_task import Judge
from prune_minilm import prepare
from torch import nn

from tersor.factorize import FactoredLinear, RankRule, factorize
from tersor.host import cpu_model
from tersor.modules import replace
from tersor.nn import LowRankInt8Linear

METHODS = ("svd", "asvd", "asvd int8")
COLUMNS = ("cosine_lee", "cosine_r8", "cosine_words", "lee", "wordsim", "r8")


def factored(model: nn.Module, ratio: float, method: str, batches: list[Any]) -> tuple[nn.Module, dict[str, float]]:
    """A copy whose encoder has this part of its linear weights at most, and what that came to."""
    made = copy.deepcopy(model)
    layers = factorize(made, RankRule("ratio", ratio), method=method, batches=batches, include=["encoder.*"])
    before, after = sum(layer.before for layer in layers), sum(layer.after for layer in layers)
    errors = [layer.error for layer in layers if not layer.reason]
    return made, {"parameters": after / before, "mean_error": sum(errors) / len(errors)}


def in_int8(model: nn.Module) -> nn.Module:
    """The same factors in fused int8 layers."""
    for old in [module for module in model.modules() if isinstance(module, FactoredLinear)]:
        replace(model, old, LowRankInt8Linear.from_float(old))
    return model


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Cosine of the embeddings over the part of the weights that is left."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, column, title in zip(axes, ("cosine_lee", "cosine_r8"), ("50 news texts", "R8 texts"), strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if row["method"] == method]
            axis.plot([row["parameters"] for row in own], [row[column] for row in own], "o-", label=method)
        axis.set(xlabel="part of the encoder's linear weights that is left", title=title)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("cosine to the float model")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(
    ratio: Annotated[list[float], typer.Option(help="Parts of the weights that may stay.")] = [0.9, 0.75, 0.6],  # noqa: B006
    texts: Annotated[int, typer.Option(help="Calibration texts.")] = 256,
    judged: Annotated[int, typer.Option(help="R8 texts to judge by, at most 1000.")] = 1000,
    probed: Annotated[int, typer.Option(help="R8 texts to fit the probe to, at most 2000.")] = 2000,
    model: Annotated[Path | None, typer.Option(help="Folder of the model instead of the package's.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Keeps the tokenised texts (.npz).")] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    out: Annotated[
        Path | None, typer.Option("--json", help="Results, written after every model; goes on with them.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Picture.")] = None,
) -> None:
    """Factorise MiniLM-L6 in several ways and print what is left of it."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    float_model, task = prepare(model, tokens)
    task = dataclasses.replace(
        task,
        r8_test=task.r8_test[:judged],
        r8_test_labels=task.r8_test_labels[:judged],
        r8_train=task.r8_train[:probed],
        r8_train_labels=task.r8_train_labels[:probed],
    )
    picked = task.recovery[:: max(len(task.recovery) // texts, 1)][:texts]
    batches = [{"input_ids": torch.from_numpy(text)[None]} for text in picked]
    judge = Judge(task, float_model, torch.device("cpu"))
    settings = {"texts": len(batches), "judged": judged, "probed": probed}
    result: dict[str, Any] = {
        "command": f"python bench/lowrank_minilm.py {' '.join(sys.argv[1:])}",
        "device": cpu_model(),
        **settings,
        "float": judge(float_model),
        "rows": [],
    }
    if out is not None and out.is_file():
        found = json.loads(out.read_text())
        if {key: found[key] for key in settings} != settings:
            raise typer.BadParameter(f"{out} holds results of other settings")
        result["rows"] = found["rows"]
    known = {(row["method"], row["ratio"]) for row in result["rows"]}
    print(f"{'method':10} {'ratio':>6} {'left':>6} {'error':>6} {' '.join(f'{c:>12}' for c in COLUMNS)}")
    for part in ratio:
        for method in METHODS:
            if (method, part) in known:
                continue
            started = time.perf_counter()
            made, sizes = factored(float_model, part, method.split()[0], batches)
            if "int8" in method:
                made = in_int8(made)
            row = {"method": method, "ratio": part, **sizes, **judge(made)}
            row["seconds"] = round(time.perf_counter() - started, 1)
            result["rows"].append(row)
            figures = " ".join(f"{row[column]:12.4f}" for column in COLUMNS)
            print(
                f"{method:10} {part:6.2f} {sizes['parameters']:6.3f} {sizes['mean_error']:6.3f} {figures}", flush=True
            )
            if out is not None:
                out.write_text(json.dumps(result, indent=1) + "\n")
    if png is not None:
        plot(sorted(result["rows"], key=lambda row: (METHODS.index(row["method"]), row["ratio"])), png)


if __name__ == "__main__":
    typer.run(main)

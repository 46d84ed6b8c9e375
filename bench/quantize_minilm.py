"""MiniLM-L6 quantised in many ways: cosine to the float model's embeddings, and what is left of two tasks.

    python bench/quantize_minilm.py --table codebooks --json out.json

Calibration: texts of lee_background.cor. Judged, on others: the 50 Lee texts (cosine, Pearson with human
similarities), the words of WordSim-353 (Spearman), 20 texts of R8's test split (cosine). Every row runs on the layers
that tersor.compress makes; embeddings and norms stay float.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from minilm_task import Task, embed, spearman
from prune_minilm import prepare
from torch import Tensor, nn

import tersor
from tersor import Recipe, demo_data, steps
from tersor.host import cpu_model

COLUMNS = ("cosine_lee", "cosine_r8", "lee", "wordsim")
R8_TEXTS = 20

Row = tuple[str, dict[str, Any]]

_OBSERVERS = ("minmax", "moving_average", "percentile", "entropy", "mse")
_STATIC: dict[str, Any] = {"activations": "static", "smooth": 0}
STATIC: list[Row] = [
    *((f"static {name}", {**_STATIC, "observer": name}) for name in _OBSERVERS),
    *(
        (f"static {name}, smoothing", {**_STATIC, "observer": name, "corrections": ("smoothing",)})
        for name in _OBSERVERS
    ),
]
_CHAINS = (
    ("smoothing", "gptq", "bias"),
    ("smoothing", "gptq"),
    ("smoothing", "range", "gptq", "bias"),
    ("range",),
    ("awq",),
    ("gptq",),
    ("bias",),
    ("adaround",),
)
INT8: list[Row] = [
    *((f"static minmax, {'+'.join(names)}", {**_STATIC, "corrections": names}) for names in _CHAINS),
    ("dynamic", {"smooth": 0, "blocks": False}),
    ("dynamic, smooth 0.5", {"blocks": False}),
    ("dynamic, smoothing+gptq", {"smooth": 0, "blocks": False, "corrections": ("smoothing", "gptq")}),
]
_NAMES = ("linear", "log2", "exponential", "nf4", "kmeans")
_INT4: dict[str, Any] = {"weights": "int4", "smooth": 0}
CODEBOOKS: list[Row] = [
    (f"{name} 4 bits {where}{end}", {**_INT4, "codebook": name, "group_size": size, "corrections": corrections})
    for size, where in ((64, "group 64"), (None, "per channel"))
    for name in _NAMES
    for end, corrections in (("", ()), (", gptq", ("gptq",)))
]
_GROUPS: dict[str, Any] = {**_INT4, "group_size": 64}
CORRECTIONS: list[Row] = [
    *(
        (f"linear 4 bits group 64, {'+'.join(names)}", {**_GROUPS, "corrections": names})
        for names in (
            ("smoothing",),
            ("awq",),
            ("bias",),
            ("awq", "gptq"),
            ("gptq", "bias"),
            ("adaround",),
        )
    ),
]
TABLES = {"observers": STATIC, "int8": INT8, "codebooks": CODEBOOKS, "corrections": CORRECTIONS}


def batches(texts: list[np.ndarray], size: int = 16) -> list[dict[str, Tensor]]:
    """Texts of similar length together, as the model takes them."""
    texts = sorted(texts, key=len)
    made = []
    for begin in range(0, len(texts), size):
        part = texts[begin : begin + size]
        longest = max(map(len, part))
        ids = torch.from_numpy(np.stack([np.pad(text, (0, longest - len(text))) for text in part]))
        made.append({"input_ids": ids, "attention_mask": (ids != 0).long()})
    return made


class Judge:
    """Compares models with the float model on texts that nothing was fitted to."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        self.task = task
        self.texts = {"lee": task.lee, "words": task.words, "r8": task.r8_test[:R8_TEXTS]}
        self.reference = self._embed(model)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Mean cosines, Pearson of Lee's similarities, Spearman of WordSim-353."""
        found = self._embed(model)
        pairs = torch.from_numpy(self.task.pairs)
        near = (found["words"][pairs[:, 0]] * found["words"][pairs[:, 1]]).sum(1).numpy()
        return {
            "cosine_lee": float((found["lee"] * self.reference["lee"]).sum(1).mean()),
            "cosine_r8": float((found["r8"] * self.reference["r8"]).sum(1).mean()),
            "lee": demo_data.pearson(found["lee"], torch.from_numpy(self.task.ratings)),
            "wordsim": spearman(near, self.task.scores),
        }

    def _embed(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: embed(model, texts, torch.device("cpu"), 32) for name, texts in self.texts.items()}


def describe(name: str, row: dict[str, Any]) -> str:
    """One line of the printed table."""
    figures = " ".join(f"{row[column]:10.5f}" for column in COLUMNS)
    return f"{name:44} {figures} {row['megabytes']:7.2f} {row['seconds']:6.1f}"


def main(
    table: Annotated[list[str], typer.Option(help=f"Of {', '.join(TABLES)}.")] = list(TABLES),  # noqa: B006
    only: Annotated[str, typer.Option(help="Rows whose name holds this.")] = "",
    texts: Annotated[int, typer.Option(help="Calibration texts.")] = 32,
    tokens: Annotated[Path | None, typer.Option(help="Where to keep the tokenised texts.")] = None,
    include: Annotated[list[str], typer.Option(help="Layers, as in a recipe; all where none is named.")] = [],  # noqa: B006
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
    out: Annotated[Path | None, typer.Option("--json", help="Results, written after every row.")] = None,
) -> None:
    """Quantise, judge, print."""
    torch.set_num_threads(threads)
    model, task = prepare(None, tokens)
    model.eval()
    judge = Judge(task, model)
    seen = batches(task.recovery[:texts])
    result: dict[str, Any] = {"command": f"python bench/quantize_minilm.py {' '.join(sys.argv[1:])}"}
    result |= {"host": cpu_model(), "isa": tersor.kernels.active(), "rows": []}
    before = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6
    result["float"] = {**judge(model), "megabytes": before, "seconds": 0.0}
    print(f"{'':44} {' '.join(f'{column:>10}' for column in COLUMNS)}      MB  cpu s")
    print(describe("float", result["float"]), flush=True)
    for name, settings in [row for key in table for row in TABLES[key] if only in row[0]]:
        started = time.process_time()
        step = steps.Quantize(**settings)
        data = seen if step.uses() else None
        made = tersor.compress(model, Recipe([step], include=include), None, data, force=True, progress=False)
        spent = time.process_time() - started
        size = made.report.totals.bytes_after / 1e6
        row = {**judge(made.model), "megabytes": size, "seconds": round(spent, 1)}
        remarks = {one.name: one.remark for one in made.report.rows if one.remark is not None}
        result["rows"].append(
            {"name": name, "settings": settings, "notes": made.report.notes, "layers": remarks, **row}
        )
        print(describe(name, row), flush=True)
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

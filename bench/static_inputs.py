"""What one static range costs in each layer of MiniLM-L6: only that layer's input is rounded, the worst layers first.

    python bench/static_inputs.py --json out.json

Ranges are those of the smallest and largest value on the calibration texts (the first of lee_background.cor); cosine to
the float model's embeddings is measured on later ones.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from minilm_task import embed
from prune_minilm import prepare
from quantize_minilm import batches
from torch import Tensor, nn

from tersor.quantize.calibration import calibrate
from tersor.quantize.simulation import fake_quantize


def rounding(scale: float, zero_point: int) -> Any:
    """A hook that quantises the input of a layer."""

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        return (fake_quantize(x.reshape(-1, x.shape[-1]), scale, zero_point).view_as(x),)

    return hook


def main(
    texts: Annotated[int, typer.Option(help="Calibration texts.")] = 32,
    judged: Annotated[int, typer.Option(help="Texts to measure on.")] = 12,
    shown: Annotated[int, typer.Option(help="Lines to print.")] = 12,
    tokens: Annotated[Path | None, typer.Option(help="Where to keep the tokenised texts.")] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Results.")] = None,
) -> None:
    """Calibrate, round one input after the other, print."""
    torch.set_num_threads(1)
    model, task = prepare(None, tokens)
    model.eval()
    seen = batches(task.recovery[:texts])
    ranges = calibrate(model, seen, observer="minmax").observers
    peaks = calibrate(model, seen, observer="minmax", granularity="channel").observers
    others, cpu = task.recovery[texts + 168 : texts + 168 + judged], torch.device("cpu")
    expected = embed(model, others, cpu, 16)
    rows: list[dict[str, Any]] = []
    for name, observer in ranges.items():
        if name.startswith("pooler"):
            continue  # the embeddings are means of the last layer's outputs
        scale, zero_point = observer.quantization()
        handle = model.get_submodule(name).register_forward_pre_hook(rounding(float(scale), int(zero_point)))
        cosine = float((embed(model, others, cpu, 16) * expected).sum(1).mean())
        handle.remove()
        low, high = peaks[name].range()
        peak = torch.maximum(high, -low).sort(descending=True).values
        rows.append({"name": name, "loss": 1 - cosine, "peaks": peak[:3].tolist(), "median_peak": float(peak.median())})
    rows.sort(key=lambda row: -row["loss"])
    for row in rows[:shown]:
        peaks_shown = ", ".join(f"{peak:.1f}" for peak in row["peaks"])
        print(f"{row['name']:44} {row['loss']:.6f}  largest channels {peaks_shown}, median {row['median_peak']:.1f}")
    print(f"sum over {len(rows)} layers: {sum(row['loss'] for row in rows):.5f}")
    if out is not None:
        out.write_text(json.dumps({"command": f"python bench/static_inputs.py {' '.join(sys.argv[1:])}", "rows": rows}))


if __name__ == "__main__":
    typer.run(main)

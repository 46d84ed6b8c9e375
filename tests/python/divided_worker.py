"""What two processes calibrate in the tests: python divided_worker.py OUT. ``work`` is the same in one process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from prune_models import loss
from torch import nn

from tersor import observe, prune
from tersor.quantize.calibration import calibrate
from tersor.quantize.moments import input_moments
from tersor.quantize.observers import OBSERVERS
from tersor.scale import gather_grams
from tersor.training import group, read_state, write_state

CRITERIA = ("wanda", "sparsegpt", "fisher", "gradient", "entropy")


def tensors(observer: Any) -> dict[str, torch.Tensor]:
    """What an observer knows."""
    return {name: value for name, value in vars(observer).items() if isinstance(value, torch.Tensor)}


def work(folder: Path) -> dict[str, Any]:
    """Everything that calibration data tells about a small model, of seven batches of different sizes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    batches = [torch.randn(3 + index % 3, 2 + index, 12) * 2 ** (index % 4) for index in range(7)]
    batches[2][0, 0, 0] = 8.0  # a power of two, where histograms double their reach
    found: dict[str, Any] = {}
    for name in OBSERVERS:
        for granularity in ("tensor", "channel", "token"):
            seen = calibrate(model, batches, observer=name, granularity=granularity, progress=False)
            found[f"{name} {granularity}"] = {layer: tensors(one) for layer, one in seen.observers.items()}
            found[f"{name} {granularity}"]["count"] = torch.tensor([seen.batches, seen.samples])
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    notes = observe.observe_ranges(model, layers, batches)
    for name, layer in layers.items():
        note = notes[id(layer)]
        assert note.channels is not None
        assert note.sample is not None
        found[f"notes {name}"] = {"low": note.channels.low, "high": note.channels.high, "rows": note.sample.rows}
    for name, moments in input_moments(model, layers, batches).items():
        found[f"moments {name}"] = {"mean": moments.mean, "gram": moments.gram, "rows": moments.sample.rows}
        found[f"moments {name}"]["peak"] = moments.channels.peak()
    for name in gather_grams(model, batches, folder / "grams"):
        found[f"gram {name}"] = {} if group.rank() else read_state(folder / "grams" / f"{name}.gram")
    rows = [(torch.randn(6, 12), torch.arange(6) % 4) for _ in range(5)]
    for criterion in CRITERIA:
        torch.manual_seed(1)
        pruned = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
        settings = {"criterion": criterion, "sparsity": 0.5, "calibration": rows, "loss": loss}
        pruner = prune.Pruner(pruned, pattern="unstructured", **settings)
        found[f"prune {criterion}"] = {**pruner.masks(), "weight": pruned[0].weight.detach()}
    return found


def main() -> None:
    torch.set_num_threads(1)
    with group.launched(timeout=60) as rank:
        found = work(Path(sys.argv[1]))
        write_state(Path(sys.argv[1]) / f"result{rank}", found)
        broken = [torch.randn(3, 12), torch.randn(3, 12) * float("nan")]
        try:
            calibrate(nn.Sequential(nn.Linear(12, 2)), broken, progress=False)
        except Exception as error:
            print(f"rank {rank}: {error}", flush=True)


if __name__ == "__main__":
    main()

"""What a user does first with an installed wheel: compress, run, save, load."""

from pathlib import Path

import torch
from torch import nn

import tersor
from tersor import Recipe, steps

torch.manual_seed(0)


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 128)).eval()


model, x = make(), torch.randn(32, 256)
result = tersor.compress(model, Recipe([steps.Quantize(weights="int8")]), example_inputs=x, force=True)
tersor.save(result.model, "smoke.tersor")
loaded = tersor.load("smoke.tersor", model=make())
with torch.inference_mode():
    assert torch.equal(loaded(x), result.model(x)), "a loaded model gives other outputs"
    error = (loaded(x) - model(x)).norm() / model(x).norm()
assert error < 0.02, f"relative error {error}"
assert Path(tersor.__file__).parent.parent.name == "site-packages", tersor.__file__
print(f"smoke test passed: {tersor.__version__}, {tersor.kernels.active()}, relative error {float(error):.4f}")

"""Does a low-rank branch beside a dense int8 weight pay? Error and time on the linear layers of MiniLM-L6.

    python bench/lowrank_beside.py --rank 32

The branch holds the best factors of what rounding the weight to int8 leaves, weighted by the inputs; both products are
one call of lowrank_s8. Errors are those of the outputs on texts that nothing was fitted to.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import torch
import typer
from prune_minilm import prepare
from torch import Tensor, nn

from tersor import kernels, observe
from tersor.benchmark import interleave
from tersor.factorize import truncated_svd
from tersor.quantize import dequantize_s8, quantize_s8
from tersor.quantize.moments import input_moments


def inputs_of(model: nn.Module, layers: dict[str, nn.Module], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What each layer is given by one batch."""
    found: dict[str, Tensor] = {}
    names = {id(layer): name for name, layer in layers.items()}
    with observe.watching(layers.values(), lambda layer, x, _: found.update({names[id(layer)]: x.flatten(0, -2)})):
        observe.run(model, batch, "texts")
    return found


def main(
    rank: Annotated[int, typer.Option(help="Of the branch.")] = 32,
    model: Annotated[Path | None, typer.Option(help="Folder of the model instead of the package's.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Keeps the tokenised texts (.npz).")] = None,
) -> None:
    """Print the mean error with and without the branch, and the times at 128 rows."""
    torch.set_num_threads(1)
    kernels.set_threads(1)
    float_model, task = prepare(model, tokens)
    layers: dict[str, nn.Module] = {
        name: m for name, m in float_model.get_submodule("encoder").named_modules() if type(m) is nn.Linear
    }
    seen = input_moments(float_model, layers, [{"input_ids": torch.from_numpy(t)[None]} for t in task.recovery[:64]])
    texts = [torch.from_numpy(text)[None] for text in task.lee[:4]]
    given = [inputs_of(float_model, layers, {"input_ids": text}) for text in texts]
    errors: dict[str, list[float]] = {"int8": [], "int8 and branch": []}
    times: dict[str, list[float]] = {name: [] for name in errors}
    for name, layer in layers.items():
        weight = layer.get_parameter("weight").detach()
        x = torch.cat([part[name] for part in given]).contiguous()
        q, scale = quantize_s8(weight)
        down, up = truncated_svd(weight - dequantize_s8(q, scale), rank, seen[name].gram)
        (d, d_scale), (u, u_scale) = quantize_s8(down), quantize_s8(up)
        parts = (d.numpy(), d_scale.numpy(), u.numpy(), u_scale.numpy())
        plain = kernels.pack_s8(q.numpy(), scale.numpy())
        beside = kernels.pack_lowrank_s8(*parts, None, q.numpy(), scale.numpy())
        expected = x @ weight.T
        runs = {
            "int8": functools.partial(kernels.linear_s8, x[:128].numpy(), plain),
            "int8 and branch": functools.partial(kernels.lowrank_s8, x[:128].numpy(), beside),
        }
        outputs = {
            "int8": kernels.linear_s8(x.numpy(), plain),
            "int8 and branch": kernels.lowrank_s8(x.numpy(), beside),
        }
        for kind, lap in interleave(runs, rounds=5).items():
            errors[kind].append(float((torch.from_numpy(outputs[kind]) - expected).norm() / expected.norm()))
            times[kind].append(lap.median * 1e6)
    for kind in errors:
        error, spent = sum(errors[kind]) / len(layers), sum(times[kind])
        print(f"{kind:16} mean relative error {error:.5f}, {spent:.0f} us for {len(layers)} layers at 128 rows")


if __name__ == "__main__":
    typer.run(main)

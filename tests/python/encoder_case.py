"""Float encoder blocks of several families with weights of order 1, and how they are called."""

from __future__ import annotations

from typing import Any

import torch
from encoder_models import blocks_of, make_model
from torch import Tensor, nn

from tersor.encoder.plain import PlainBlock
from tersor.factorize import FactoredLinear
from tersor.nn import EncoderBlock

CASES = (
    "plain",
    "plain pre-norm",
    "sparse smoothed",
    "low rank",
    "low rank smoothed",
    "bert",
    "distilbert",
    "vit",
    "bart",
)
CASES += ("torch", "torch pre-norm")
FACTORED = {
    "low rank": {"query": 5, "key": 4, "value": 5, "up": 8, "down": 6, "out": 24},
    "low rank smoothed": {"query": 3, "key": 5, "value": 6, "up": 8},
}

KEEP = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] + [False] * 5])


def make_float(case: str) -> nn.Module:
    torch.manual_seed(1)
    if case.startswith(("plain", "sparse", "low rank")):
        block = PlainBlock(24, 3, 40, head_dim=16 if case == "plain" else None, norm_first=case.endswith("pre-norm"))
        for path, rank in FACTORED.get(case, {}).items():
            layer = block.get_submodule(path)
            setattr(block, path, FactoredLinear(layer.in_features, layer.out_features, rank))
        for parameter in block.parameters():
            nn.init.normal_(parameter, 0.3, 0.3) if parameter.dim() == 1 else nn.init.normal_(parameter, std=0.3)
        return block.eval()
    model = make_model(case)
    block: nn.Module = model.get_submodule(blocks_of(model)[0])
    return block


def settings_of(case: str, module: Any) -> dict[str, Any]:
    if case == "low rank smoothed":
        return {"input_scales": {"up": torch.rand(24) + 0.1, "qkv": torch.rand(24) + 0.1}}
    if case != "sparse smoothed":
        return {}
    for layer in (module.query, module.key, module.value, module.down):
        with torch.no_grad():
            layer.weight[
                torch.rand(layer.weight.shape[0], layer.weight.shape[1] // 4).repeat_interleave(4, 1) < 0.7
            ] = 0
    scales = {"up": torch.rand(24) + 0.1, "qkv": torch.rand(24) + 0.1}
    return {"patterns": {"qkv": "1x4", "down": "unstructured"}, "input_scales": scales}


def inputs(block: EncoderBlock) -> Tensor:
    return torch.randn((3, 6, block.config()["hidden"]), generator=torch.Generator().manual_seed(2))


def mask_for(block: EncoderBlock, keep: Tensor = KEEP) -> dict[str, Tensor]:
    """The padding as the float block wants it."""
    family = block._frame.family
    names = block._frame.names
    name = next(name for name in family.mask_names if name in names)
    if not family.true_is_kept:
        return {name: ~keep}
    return {name: keep[:, None, None].expand(-1, 1, keep.shape[1], -1).contiguous()}


def run(block: nn.Module, x: Tensor, **mask: Tensor) -> Tensor:
    needed = {} if mask or not isinstance(block, EncoderBlock) or block._frame.family.name != "bart" else {
        "attention_mask": None
    }  # fmt: skip
    with torch.no_grad():
        y: Tensor = block(x, **mask, **needed)
    return y


def same(one: nn.Module, other: nn.Module) -> bool:
    x = inputs(other)
    return torch.equal(run(one, x), run(other, x))

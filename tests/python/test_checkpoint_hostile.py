"""Files that attack the loader: each raises CheckpointError with its own reason and leaves the model alone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_models import TOKENS, Net, assert_same, int8_net
from hostile import FILES, Parts
from torch import nn

import tersor

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("valid") / "valid.tersor"
    tersor.save(int8_net(), path)
    return path.read_bytes()


def objects(model: nn.Module) -> dict[str, object]:
    """The very objects that a model is made of, by name."""
    return {**dict(model.named_modules()), **dict(model.named_parameters()), **dict(model.named_buffers())}


def refuse(path: Path, message: str, *, header_only: bool = False) -> None:
    """load raises CheckpointError and changes nothing; so does inspect, where the header alone is wrong."""
    model = Net()
    before, state = objects(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(tersor.CheckpointError, match=message) as caught:
        tersor.load(path, model)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert text.isprintable()
    assert len(text) < 2000
    assert objects(model) == before
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    if header_only:
        with pytest.raises(tersor.CheckpointError, match=message):
            tersor.inspect(path)
    else:
        assert tersor.inspect(path).kinds


@pytest.mark.parametrize("name", FILES)
def test_hostile_file(tmp_path: Path, valid: bytes, name: str) -> None:
    path = tmp_path / "hostile.tersor"
    path.write_bytes(FILES[name].make(Parts.of(valid)))
    refuse(path, FILES[name].message, header_only=FILES[name].header_only)


def test_the_unchanged_file_is_accepted(tmp_path: Path, valid: bytes) -> None:
    path = tmp_path / "valid.tersor"
    path.write_bytes(Parts.of(valid).pack())
    assert_same(tersor.load(path, Net()), int8_net())


def test_truncated_anywhere(tmp_path: Path, valid: bytes) -> None:
    path = tmp_path / "cut.tersor"
    for length in (*range(0, len(valid), 13), len(valid) - 1):
        path.write_bytes(valid[:length])
        with pytest.raises(tersor.CheckpointError):
            tersor.load(path, Net())
        with pytest.raises(tersor.CheckpointError):
            tersor.inspect(path)


def test_truncated_while_it_is_read(tmp_path: Path, valid: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cut.tersor"
    path.write_bytes(valid)
    real = tersor.checkpoint.reader.check_device

    def cut(*args: Any) -> None:
        os.truncate(path, len(valid) - 100)
        real(*args)

    monkeypatch.setattr(tersor.checkpoint.reader, "check_device", cut)
    with pytest.raises(tersor.CheckpointError, match="ended while it was read"):
        tersor.load(path, Net())


@pytest.mark.parametrize("kind", ["folder", "fifo", "missing", "dangling", "loop", "device", "socket", "below_file"])
def test_no_regular_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "below_file":
        path.touch()
        path /= "y"
    elif kind == "socket":
        import socket

        socket.socket(socket.AF_UNIX).bind(str(path))
    for read in (tersor.inspect, tersor.load):
        with pytest.raises(tersor.CheckpointError, match="cannot read") as caught:
            read(path)
        assert isinstance(caught.value.__cause__, OSError)


class Stubborn(Net):
    """Refuses a new `norm.weight`, which the loader sets after others."""

    def __init__(self) -> None:
        super().__init__()
        norm = self.norm

        class Frozen(type(norm)):
            def __setattr__(self, key: str, value: object) -> None:
                if key == "bias" and "frozen" in self.__dict__:
                    raise AttributeError("frozen")
                super().__setattr__(key, value)

        norm.__class__ = Frozen
        norm.frozen = True


def test_a_refused_assignment_is_undone(tmp_path: Path, valid: bytes) -> None:
    path = tmp_path / "valid.tersor"
    path.write_bytes(valid)
    model = Stubborn()
    before = objects(model)
    with pytest.raises(tersor.CheckpointError, match="AttributeError of a module's own __setattr__: frozen"):
        tersor.load(path, model)
    assert objects(model) == before


class Wider(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(9, 6, bias=False)


class Biased(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(7, 6)


class Bytes(Net):
    def __init__(self) -> None:
        super().__init__()
        self.keep = self.keep.byte()


class Container(Net):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Sequential(nn.Linear(7, 6, bias=False))


class Deeper(Net):
    def __init__(self) -> None:
        super().__init__()
        self.more = nn.ModuleList(nn.LayerNorm(3) for _ in range(30))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Wider, "'second' has in_features 7 in the file and 9 in the model"),
        (Biased, "'second' has bias False in the file and True in the model"),
        (Container, "'second' is a Sequential in the model, without a weight"),
        (Deeper, "missing in the file: 'more.0.bias', 'more.0.weight'.* and 50 more"),
        (lambda: nn.Linear(3, 3), "no modules for the layers 'first', 'second'"),
        (Bytes, "'keep' is torch.bool in the file and torch.uint8 in the model"),
        (lambda: Net().to("meta"), "buffers on meta that no file holds: 'steps'"),
        (dict, "expected a torch.nn.Module or None, got dict"),
    ],
)
def test_a_model_that_does_not_fit(tmp_path: Path, valid: bytes, model: Any, message: str) -> None:
    path = tmp_path / "valid.tersor"
    path.write_bytes(valid)
    with pytest.raises(tersor.CheckpointError, match=message):
        tersor.load(path, model())


def mutate(valid: bytes, seed: int) -> bytes:
    """A valid file with a few random changes: bytes, numbers, pieces of text, cuts."""
    rng = random.Random(seed)
    data = bytearray(valid)
    header_end = 8 + int.from_bytes(valid[:8], "little")
    for _ in range(rng.choice([1, 1, 2, 5])):
        limit = rng.choice([8, header_end, header_end, len(data)])
        at = rng.randrange(max(1, min(limit, len(data))))
        end = at + rng.choice([1, 1, 4, 30])
        match rng.randrange(6):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at:end] = rng.randbytes(end - at)
            case 2:
                del data[at:end]
            case 3:
                other = rng.randrange(len(data))
                data[at:end] = data[other : other + end - at]
            case 4:
                digits = [i for i in range(8, min(header_end, len(data))) if chr(data[i]).isdigit()]
                if digits:
                    data[rng.choice(digits)] = rng.choice(b"0123456789-.e")
            case 5:
                token = rng.choice([b"null", b"[]", b"{}", b"-1", b"1e9", b'""', b"true", b"4294967296", b"\\u0000"])
                data[at : at + len(token)] = token
    if rng.random() < 0.5:  # a true length, so that the attack comes further
        text = bytes(data[8:header_end]).ljust(header_end - 8)
        data[8:header_end] = text
        data[:8] = valid[:8]
    return bytes(data)


def test_random_mutations(tmp_path: Path, valid: bytes) -> None:
    path = tmp_path / "mutated.tersor"
    loads, messages = 0, list[str]()
    for seed in range(3000):
        path.write_bytes(mutate(valid, seed))
        try:
            model = tersor.load(path, Net())
        except tersor.CheckpointError as error:
            messages.append(str(error))
            continue
        loads += 1
        assert model(TOKENS).shape == (5, 11), seed
        for name, tensor in model.state_dict().items():
            if name.endswith("weight_q"):
                assert int(tensor.min()) >= -127, seed
            if name.endswith("weight_scale"):
                assert bool((tensor.isfinite() & (tensor > 0)).all()), seed
    assert loads > 100
    assert len(messages) > 1000
    assert all(message.isprintable() for message in messages)


def test_memory_stays_small(tmp_path: Path, valid: bytes) -> None:
    """All hostile files in a new process: none makes its peak grow by more than a few times the size of the file."""
    names = sorted(FILES)
    for name in names:
        (tmp_path / name).write_bytes(FILES[name].make(Parts.of(valid)))
    (tmp_path / "valid").write_bytes(valid)
    script = """
import sys
from pathlib import Path
import tersor
from checkpoint_models import Net
def peak():
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
folder, *names = map(Path, sys.argv[1:])
tersor.load(folder / "valid", Net())
Path("/proc/self/clear_refs").write_text("5")
worst = 0
for name in names:
    before = peak()
    try:
        tersor.load(folder / name, Net())
    except tersor.CheckpointError:
        pass
    if peak() > before + 40 + 6 * (folder / name).stat().st_size / 1e6:
        sys.exit(f"{name}: peak grew from {before} MB to {peak()} MB")
"""
    command = [sys.executable, "-c", script, str(tmp_path), *names]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr

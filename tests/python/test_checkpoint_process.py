"""What needs a process of its own: peak memory of load and save, a kill during a save, no torch for inspect."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_models import Net, assert_same, int8_net
from torch import nn

import tersor
from tersor.nn import Int8Linear

HERE = Path(__file__).parent
WIDTH, DEPTH = 4096, 18  # 18 layers of 16.8 MB: 303 MB packed

PEAK = """
import sys
from pathlib import Path
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
def start():
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    return status("VmRSS")
"""


def python(script: str, *arguments: object) -> str:
    """Runs a script with this interpreter; its output."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.tersor"
    layers = []
    q = torch.randint(-127, 128, (WIDTH, WIDTH), dtype=torch.int8)
    for _ in range(DEPTH):
        layer = Int8Linear(WIDTH, WIDTH, bias=False)
        layer.fill({"weight_q": q, "weight_scale": torch.rand(WIDTH) + 0.5})
        layers.append(layer)
    tersor.save(nn.Sequential(*layers), path)
    return path


def test_peak_memory_of_load(large: Path) -> None:
    script = f"""{PEAK}
import torch, tersor
from torch import nn
from tersor.nn import Int8Linear
tersor.load(sys.argv[2])  # what is loaded once: code, not data
with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear({WIDTH}, {WIDTH}, bias=False) for _ in range({DEPTH})))
before = start()
tersor.load(sys.argv[1], model)
packed = sum(layer.packed.numel() for layer in model)
print(packed, status("VmHWM") - before)
"""
    single = large.with_name("single.tersor")
    tersor.save(Int8Linear.from_float(nn.Linear(8, 8)), single)
    packed, peak = map(int, python(script, large, single).split())
    assert packed > 300e6
    assert peak > packed  # the measurement sees the model
    assert peak <= 1.3 * packed


def test_peak_memory_of_save(large: Path) -> None:
    script = f"""{PEAK}
import torch, tersor
from torch import nn
with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear({WIDTH}, {WIDTH}, bias=False) for _ in range({DEPTH})))
tersor.load(sys.argv[1], model)
tersor.save(model[0], sys.argv[2])
before = start()
tersor.save(model, sys.argv[2])
print(status("VmHWM") - before)
"""
    copy = large.with_name("copy.tersor")
    # One layer; the allocator may fail to use the memory of the layer before again.
    assert int(python(script, large, copy)) < 2.2 * WIDTH * WIDTH
    assert copy.read_bytes() == large.read_bytes()


def test_kill_during_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.tersor"
    tersor.save(int8_net(), path)
    before = path.read_bytes()
    script = """
import sys, time, tersor
from checkpoint_models import int8_net
from tersor.checkpoint import writer
real = writer.write_tensor
def stop_after_some(file, start, entry, tensor, count=[0]):
    real(file, start, entry, tensor)
    count[0] += 1
    if count[0] == 4:
        print("half", flush=True)
        time.sleep(600)
writer.write_tensor = stop_after_some
tersor.save(int8_net(seed=1), sys.argv[1])
"""
    with subprocess.Popen([sys.executable, "-c", script, path], cwd=HERE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        assert len(list(tmp_path.iterdir())) == 2
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert_same(tersor.load(path, Net()), int8_net())
    tersor.save(int8_net(seed=1), path)
    assert_same(tersor.load(path, Net()), int8_net(seed=1))


def test_file_size_limit_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.tersor"
    tersor.save(int8_net(), path)
    before = path.read_bytes()
    script = """
import resource, sys, tersor
from checkpoint_models import int8_net
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    tersor.save(int8_net(seed=1), sys.argv[1])
except tersor.CheckpointError as error:
    assert isinstance(error.__cause__, OSError)
    print(error)
"""
    assert "File too large" in python(script, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_inspect_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "model.tersor"
    tersor.save(int8_net(), path)
    script = """
import sys, tersor
print(tersor.inspect(sys.argv[1]))
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    assert "2 int8_linear" in python(script, path)

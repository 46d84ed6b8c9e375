"""The energy of a GPU, by a stand-in for NVML; that of CPU packages is tested with the benchmark."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tersor.energy import EnergyMeter, gpu_of


class NVMLError(Exception):
    """As NVML has it."""


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A host with one GPU, whose counter is ``millijoules``; None: the card has no counter."""
    fake = SimpleNamespace(NVMLError=NVMLError, millijoules=5000)

    def handle(uuid: str) -> str:
        if uuid != "GPU-1":
            raise NVMLError(uuid)
        return uuid

    def total(handle: str) -> int:
        if fake.millijoules is None:
            raise NVMLError(handle)
        return int(fake.millijoules)

    fake.nvmlInit = lambda: None
    fake.nvmlDeviceGetHandleByUUID = handle
    fake.nvmlDeviceGetTotalEnergyConsumption = total
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The powercap tree of one CPU package."""
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "max_energy_range_uj").write_text("9000000")
    (zone / "energy_uj").write_text("1000000")
    return tmp_path


def test_gpu_and_package_are_added(nvml: SimpleNamespace, package: Path) -> None:
    meter = EnergyMeter(package, "GPU-1")
    assert meter.sources == ("package 0", "GPU")
    nvml.millijoules += 2500
    (package / "intel-rapl:0" / "energy_uj").write_text("1500000")
    assert meter.lap() == pytest.approx(3.0)
    assert meter.lap() == 0
    nvml.millijoules = None
    assert meter.lap() is None


def test_without_the_gpu_at_work_there_is_no_energy(
    nvml: SimpleNamespace, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not EnergyMeter(package, "GPU-2").available  # no such card
    nvml.millijoules = None
    assert not EnergyMeter(package, "GPU-1").available  # too old a card
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter(package, "GPU-1").sources == ()  # nvidia-ml-py is not installed
    assert EnergyMeter(package).sources == ("package 0",)


def test_a_gpu_alone_is_told_where_packages_are_not_readable(nvml: SimpleNamespace, package: Path) -> None:
    (package / "intel-rapl:0" / "energy_uj").unlink()
    meter = EnergyMeter(package, "GPU-1")
    assert meter.sources == ("GPU",)
    nvml.millijoules += 100
    assert meter.lap() == pytest.approx(0.1)
    assert not EnergyMeter(package).available


def test_the_gpu_is_that_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_of(nn.Linear(2, 2), {"x": [torch.ones(1), 3]}) is None
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1"))
    on_gpu = SimpleNamespace(device=torch.device("cuda:0"))
    monkeypatch.setattr("tersor.energy._tensors", lambda things: [torch.ones(1), on_gpu])
    assert gpu_of(on_gpu) == "GPU-1"

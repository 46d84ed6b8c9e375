"""The doctor tells what is there, and what is wrong with its fix."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tersor
from tersor import _native, host
from tersor.errors import NativeError


def test_what_is_found_agrees_with_the_library() -> None:
    result = tersor.doctor()
    assert result.get("versions", "torch").value == torch.__version__
    assert result.get("versions", "numpy").value == np.__version__
    assert result.get("versions", "tersor").value == tersor.__version__
    assert result.get("compiled parts", "_C").status == "ok"
    assert result.get("compiled parts", "_torch_ops").status == "ok"
    assert result.get("compiled parts", "libtersor").value.endswith("libtersor.so")
    assert result.get("instruction sets", "active").value == tersor.kernels.active()
    assert result.get("instruction sets", "built").value == ", ".join(tersor.kernels.built())
    assert result.get("cpu", "usable").value == str(tersor.kernels.usable_cpus())
    assert "x float (" in result.get("speed", "int8 layer").value
    assert result.healthy
    with pytest.raises(KeyError):
        result.get("cpu", "colour")


def test_python_and_native_agree_on_the_usable_cpus() -> None:
    assert host.usable_cpus() == tersor.kernels.usable_cpus()


@pytest.mark.parametrize("width", [80, 100])
def test_table_and_json(width: int) -> None:
    result = tersor.doctor(speed=False)
    assert max(map(len, result.table(width).splitlines())) <= width or any(
        len(f.value) > width for f in result.findings
    )
    data = json.loads(result.to_json())
    assert (data["schema"], data["healthy"]) == ("tersor.doctor/1", True)
    assert len(data["findings"]) == len(result.findings)


def test_a_broken_compiled_part_is_a_finding_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise NativeError("the file is gone.", "`pip install tersor`.")

    monkeypatch.setattr(_native, "core", broken)
    monkeypatch.setattr(_native, "torch_ops", broken)
    result = tersor.doctor(speed=False)
    assert not result.healthy
    assert result.get("compiled parts", "_C").fix == "`pip install tersor`."
    assert result.get("instruction sets", "active").value == "unknown without _C"
    assert int(result.get("cpu", "usable").value) >= 1
    assert "FAILED _torch_ops: the file is gone. `pip install tersor`." in result.table()


def test_it_works_where_no_compiled_file_exists(tmp_path: Path) -> None:
    for part in tersor.__path__:
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(part, tmp_path / "tersor", dirs_exist_ok=True, ignore=ignored)
    start = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.meta_path[:] = [f for f in sys.meta_path if "
        "'Editable' not in type(f).__name__ and 'ScikitBuild' not in type(f).__name__]; "
        "sys.argv = ['tersor', 'doctor', '--json']; from tersor.cli import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 1, run.stderr
    data = json.loads(run.stdout)
    failed = {finding["name"]: finding["fix"] for finding in data["findings"] if finding["status"] == "failed"}
    assert {"libtersor", "_C", "_torch_ops", "int8 layer"} <= set(failed)
    assert "pip install" in failed["_C"]


def test_a_misspelt_instruction_set_is_a_failure_that_lists_what_exists() -> None:
    code = "import tersor; print(tersor.doctor(speed=False).to_json())"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"TERSOR_ISA": "avx1024"}
    )
    findings = json.loads(run.stdout)["findings"]
    found = [f for f in findings if f["section"] == "instruction sets"]
    assert found[0]["value"] == "avx1024"
    assert found[1]["status"] == "failed"
    assert "scalar" in found[1]["value"]


def test_more_torch_threads_than_cpus_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    finding = tersor.doctor(speed=False).get("cpu", "torch threads")
    assert finding.status == "warning"
    assert f"set_num_threads({tersor.kernels.usable_cpus()})" in str(finding.fix)


def test_a_second_openmp_runtime_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "openmp_runtimes", lambda: ["/a/libgomp.so.1", "/b/libiomp5.so"])
    finding = tersor.doctor(speed=False).get("cpu", "OpenMP runtimes")
    assert finding.status == "warning"
    assert finding.value == "/a/libgomp.so.1, /b/libiomp5.so"


def test_openmp_runtimes_are_found_by_their_names(tmp_path: Path) -> None:
    lines = [
        "7f00-7f01 r-xp 00000000 fe:00 12   /x/torch/lib/libgomp.so.1",
        "7f01-7f02 r--p 00000000 fe:00 12   /x/torch/lib/libgomp.so.1",
        "7f02-7f03 r-xp 00000000 fe:00 13   /y/sklearn/libgomp-1e80b3cf.so.1.0.0",
        "7f03-7f04 r-xp 00000000 fe:00 14   /z/a folder/libiomp5.so",
        "7f04-7f05 r-xp 00000000 fe:00 15   /z/libompeople.txt",
        "7f05-7f06 rw-p 00000000 00:00 0",
    ]
    (tmp_path / "maps").write_text("\n".join(lines))
    assert host.openmp_runtimes(tmp_path / "maps") == [
        "/x/torch/lib/libgomp.so.1", "/y/sklearn/libgomp-1e80b3cf.so.1.0.0", "/z/a folder/libiomp5.so",
    ]  # fmt: skip
    assert host.openmp_runtimes(tmp_path / "nothing") == []


def test_the_quota_is_the_smallest_on_the_way_up(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n")
    inner = tmp_path / "fs" / "outer" / "inner"
    inner.mkdir(parents=True)
    assert host.cgroup_quota(tmp_path / "fs", own) is None
    (inner / "cpu.max").write_text("max 100000\n")
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    assert host.cgroup_quota(tmp_path / "fs", own) == 1.5
    (inner / "cpu.max").write_text("50000 100000\n")
    assert host.cgroup_quota(tmp_path / "fs", own) == 0.5


def test_the_quota_of_the_first_kind_of_control_groups(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("3:cpu,cpuacct:/box\n2:memory:/box\n")
    box = tmp_path / "fs" / "cpu,cpuacct" / "box"
    box.mkdir(parents=True)
    (box / "cpu.cfs_period_us").write_text("100000")
    (box / "cpu.cfs_quota_us").write_text("-1")
    assert host.cgroup_quota(tmp_path / "fs", own) is None
    (box / "cpu.cfs_quota_us").write_text("250000")
    assert host.cgroup_quota(tmp_path / "fs", own) == 2.5


def test_a_cache_folder_that_cannot_be_written_to_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    monkeypatch.setenv("TERSOR_CACHE_DIR", str(blocker / "cache"))
    finding = tersor.doctor(speed=False).get("cache", "folder")
    assert finding.status == "warning"
    assert "can't be written to" in finding.value
    assert "TERSOR_CACHE_DIR" in str(finding.fix)


def test_a_wrong_result_of_the_quick_layer_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.doctor_speed.measure", lambda: (128, 100.0, 50.0, 0.5))
    finding = tersor.doctor().get("speed", "int8 layer")
    assert finding.status == "failed"
    monkeypatch.setattr("tersor.doctor_speed.measure", lambda: (128, 50.0, 100.0, 0.01))
    assert tersor.doctor().get("speed", "int8 layer").status == "warning"

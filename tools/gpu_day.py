#!/usr/bin/env python3
"""Everything that only a GPU can tell, in one command: `python3 tools/gpu_day.py --out DIR`, under 10 minutes, offline.

Needs what a bare GPU host has: nvcc, cmake, ninja, Python with torch, pybind11, scikit-build-core and pytest. Each
stage is a process of its own with a time limit; DIR/gpu_day.json is rewritten after each, so that nothing is lost when
a later one hangs. Stages: probe (what the host is), build (the package, into DIR/site), ptx (every wrapper of ptx.cuh
on random registers against the emulation, bit for bit), tests, sanitizer (compute-sanitizer), ceilings, bench (dense
int8), sparse (sparse and low-rank), stamp.

`--emulate` is the dry run of a host without a GPU: nothing is built for CUDA, the ptx stage runs the emulation twice,
and the benches run their tables on tiny shapes on the CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = "tersor.gpu_day/1"
PTX = ROOT / "csrc" / "kernels" / "cuda" / "ptx.cuh"
LIMITS = {
    "probe": 30,
    "build": 180,
    "ptx": 60,
    "tests": 120,
    "sanitizer": 100,
    "ceilings": 40,
    "bench": 200,
    "sparse": 120,
    "stamp": 20,
}
TESTS = [
    "test_torch_op_results.py",
    "test_cuda_kernels.py",
    "test_cuda_sparse.py",
    "test_cuda_layer.py",
    "test_cuda_build.py",
]


def ptx_hash() -> str:
    """What a hardware stamp vouches for: the text of the one file with instructions by hand."""
    return hashlib.sha256(PTX.read_bytes()).hexdigest()


def call(*command: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    run = subprocess.run(
        command, cwd=cwd, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(run.stdout, flush=True)
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} ... ended with {run.returncode}")
    return run.stdout


# --- The stages: each runs in its own process and returns what goes into the JSON.


def probe(out: Path, emulate: bool) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    if nvcc := shutil.which("nvcc"):
        found["nvcc"] = call(nvcc, "--version").splitlines()[-2]
    if emulate:
        return {**found, "device": "emulation"}
    properties = torch.cuda.get_device_properties(0)
    found |= {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
    }
    query = "driver_version,clocks.max.sm,clocks.max.mem,power.limit"
    found["driver"] = call("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader").strip()
    return found


def build(out: Path, emulate: bool) -> dict[str, Any]:
    if emulate:
        return {"built": "nothing: the installed package is used"}
    site = str(out / "site")
    settings = {"TERSOR_CUDA": "ON", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
    install = (sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--quiet", "--target", site)
    call(*install, "--config-settings=build-dir=" + str(out / "build"), ".", env=settings)
    return {"files": sorted(path.name for path in (out / "site" / "tersor").glob("*.so"))}


def ptx(out: Path, emulate: bool) -> dict[str, Any]:
    source, emulation = ROOT / "tests" / "cuda" / "ptx_probe.cu", ROOT / "tests" / "cuda" / "emulation"
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
    host = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-march=x86-64-v2", "-Wno-unknown-pragmas", *include]
    sources = ["-xc++", str(source), *map(str, sorted(emulation.glob("*.cc")))]
    call(*host, "-DTERSOR_EMULATE", f"-I{emulation}", *sources, "-o", str(out / "ptx_emulated"))
    expected = call(str(out / "ptx_emulated"))
    if emulate:
        got = call(str(out / "ptx_emulated"))
    else:
        call("nvcc", "-std=c++17", "-O3", *include, "-arch=native", "-o", str(out / "ptx_cuda"), str(source))
        got = call(str(out / "ptx_cuda"))
    pairs = list(zip(expected.splitlines(), got.splitlines(), strict=True))
    different = [theirs.split()[0] for theirs, ours in pairs if theirs != ours]
    if different:
        raise SystemExit(f"not the bits of the emulation: {', '.join(different)}")
    return {"wrappers": [line.split()[0] for line, _ in pairs], "bit_exact": True}


def package(out: Path) -> dict[str, str]:
    """The environment in which the stages after `build` find the package."""
    site = out / "site"
    return {"PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"} if site.exists() else {}


def tests(out: Path, emulate: bool) -> dict[str, Any]:
    folder = ROOT / "tests" / "python"
    files = [str(folder / name) for name in TESTS if (folder / name).exists()]
    which = ["-k", "cuda or gpu"] if not emulate else ["-k", "(cuda or gpu) and not real_size"]
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib")
    text = call(*pytest, *which, *files, env={**package(out), "PYTHONPATH": _test_path(out)}, cwd=out)
    return {"summary": text.strip().splitlines()[-1]}


def _test_path(out: Path) -> str:
    parts = [package(out).get("PYTHONPATH", ""), str(ROOT / "tests" / "python"), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(part for part in parts if part)


def sanitizer(out: Path, emulate: bool) -> dict[str, Any]:
    checker = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    program = (sys.executable, str(ROOT / "tools" / "gpu_check.py"))
    if emulate:
        return {"skipped": "no GPU"}
    if checker is None:
        return {"skipped": "no compute-sanitizer"}
    env = {**package(out), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    env["PYTHONPATH"] = _test_path(out)
    sparse = str(ROOT / "tests" / "python" / "test_cuda_sparse.py")
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib")
    programs = {"dense": program, "sparse": (*pytest, "-k", "shape1 or shape3", sparse)}
    found = {}
    for tool in ("memcheck", "racecheck"):
        for name, command in programs.items():
            text = call(checker, "--tool", tool, "--error-exitcode", "9", *command, env=env, cwd=out)
            summary = next((line for line in reversed(text.splitlines()) if "SUMMARY" in line), "no summary")
            found[f"{tool} {name}"] = summary.lstrip("= ")
    return found


def ceilings(out: Path, emulate: bool) -> dict[str, Any]:
    return _bench(out, emulate, "ceilings")


def bench(out: Path, emulate: bool) -> dict[str, Any]:
    return _bench(out, emulate, "rows")


def sparse(out: Path, emulate: bool) -> dict[str, Any]:
    return {"skipped": "no GPU"} if emulate else _bench(out, emulate, "sparse")


def _bench(out: Path, emulate: bool, what: str) -> dict[str, Any]:
    result = out / f"{what}.json"
    options = ["--emulate"] if emulate else []
    program = (sys.executable, str(ROOT / "tools" / "gpu_bench.py"), what, "--json", str(result), *options)
    call(*program, env=package(out), cwd=out)
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def stamp(out: Path, emulate: bool) -> dict[str, Any]:
    """Written only when everything that says "correct" has passed on hardware."""
    day = json.loads((out / "gpu_day.json").read_text())
    passed = {stage["name"] for stage in day["stages"] if stage["rc"] == 0}
    needed = {"ptx", "tests"}
    if emulate or not needed <= passed:
        return {"stamp": "none", "why": "emulated" if emulate else f"failed: {', '.join(sorted(needed - passed))}"}
    device = day["results"]["probe"]
    content = {
        "ptx_sha256": ptx_hash(),
        "device": device["device"],
        "compute_capability": device["compute_capability"],
        "driver": device["driver"],
        "nvcc": device["nvcc"],
        "tests": day["results"]["tests"]["summary"],
    }
    (out / "hardware_stamp.json").write_text(json.dumps(content, indent=1) + "\n")
    return content


STAGES: dict[str, Callable[[Path, bool], dict[str, Any]]] = {
    stage.__name__: stage for stage in (probe, build, ptx, tests, sanitizer, ceilings, bench, sparse, stamp)
}


def run_stage(name: str, out: Path, emulate: bool) -> tuple[dict[str, Any], Any]:
    """Runs one stage as a process; its record and its result."""
    result = out / f"{name}.result.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--out", str(out), "--stage", name, *(["--emulate"] if emulate else [])]
    started, timed_out = time.monotonic(), False
    with (out / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            rc = process.wait(LIMITS[name])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            rc, timed_out = process.wait(), True
    seconds = round(time.monotonic() - started, 1)
    tail = (out / f"{name}.log").read_text(errors="replace")[-2000:] if rc != 0 else ""
    record = {"name": name, "rc": rc, "seconds": seconds, "limit": LIMITS[name], "timed_out": timed_out, "tail": tail}
    return record, json.loads(result.read_text()) if result.exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.stage:
        result = STAGES[options.stage](out, options.emulate)
        (out / f"{options.stage}.result.json").write_text(json.dumps(result))
        return 0
    day: dict[str, Any] = {"schema": SCHEMA, "emulated": options.emulate, "ptx_sha256": ptx_hash()}
    day |= {"stages": [], "results": {}}
    for name in options.stages:
        record, result = run_stage(name, out, options.emulate)
        day["stages"].append(record)
        day["results"][name] = result
        (out / "gpu_day.json").write_text(json.dumps(day, indent=1) + "\n")
        print(f"{name}: {'ok' if record['rc'] == 0 else 'FAILED'}, {record['seconds']} s", flush=True)
        if record["rc"] != 0:
            print(record["tail"], flush=True)
    return 0 if all(record["rc"] == 0 for record in day["stages"]) else 1


if __name__ == "__main__":
    sys.exit(main())

"""What this host is: CPU, limits, versions, folders. Reads only; works without the compiled parts."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path

_OPENMP = re.compile(r"(libgomp|libiomp5|libomp)\b[^/]*\.so")


def cpu_model() -> str:
    """The CPU's name with family, model and stepping where Linux tells them, such as ``AMD EPYC 9354 (25/17/1)``."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    block = text.split("\n\n")[0]
    fields = dict(re.findall(r"^([^\t:]+?)\s*:\s*(.*)$", block, re.MULTILINE))
    name = fields.get("model name") or fields.get("Hardware") or f"{platform.machine()} CPU"
    x86 = [fields[key] for key in ("cpu family", "model", "stepping") if key in fields]
    arm = [fields[key] for key in ("CPU implementer", "CPU part", "CPU revision") if key in fields]
    numbers = "/".join(x86 or arm)
    return f"{name.strip()} ({numbers})" if numbers else name.strip()


def affinity() -> int:
    """How many CPUs the scheduler may run this process on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """The smallest CPU quota over this process's control groups, in CPUs; None where there is none."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            quotas += [quota for base in (root, root / "unified") for quota in _walk(base, path, _quota_v2)]
        elif "cpu" in controllers.split(","):
            quotas += [quota for base in (root / controllers, root / "cpu") for quota in _walk(base, path, _quota_v1)]
    return min(quotas, default=None)


def _walk(base: Path, path: str, read: object) -> list[float]:
    folder, found = base / path.lstrip("/"), []
    for place in (folder, *folder.parents):
        if callable(read) and (quota := read(place)) is not None:
            found.append(quota)
        if place == base:
            break
    return found


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def usable_cpus() -> int:
    """The smaller of affinity and quota rounded down, at least 1."""
    quota = cgroup_quota()
    return max(1, min(affinity(), affinity() if quota is None else int(quota)))


def version_of(package: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cache_folder() -> Path:
    """Where tersor keeps measurements: ``TERSOR_CACHE_DIR``, ``XDG_CACHE_HOME/tersor`` or ``~/.cache/tersor``.

    Raises:
        RuntimeError: there is no home folder to be found.
    """
    if own := os.environ.get("TERSOR_CACHE_DIR"):
        return Path(own)
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "tersor"


def describe_host() -> dict[str, str]:
    """CPU, usable CPUs, active instruction set and versions, for the head of a measurement.

    Raises:
        NativeError: the compiled part is missing.
    """
    from tersor._native import core

    versions = {name: version_of(name) or "not installed" for name in ("tersor", "torch", "numpy")}
    facts = {"cpu": cpu_model(), "cpus": str(usable_cpus()), "isa": core().isa_active()}
    return {**facts, "python": platform.python_version(), **versions}


def openmp_runtimes(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """Paths of the OpenMP runtimes loaded into this process, sorted; more than one means two thread pools."""
    try:
        lines = maps.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if _OPENMP.search(os.path.basename(path)))

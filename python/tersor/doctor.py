"""What tersor finds on this host, and what is wrong with it. Works when the compiled parts do not."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from tersor import _native, host, text
from tersor.errors import NativeError

SCHEMA = "tersor.doctor/1"
_STYLES = {"ok": "green", "info": "", "warning": "yellow", "failed": "red"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fact.

    Attributes:
        section, name: where it belongs and what it is called.
        value: what was found.
        status: ``info`` is a mere fact, ``ok`` a check that passed.
        fix: what to do, where something is wrong.
    """

    section: str
    name: str
    value: str
    status: Literal["ok", "info", "warning", "failed"] = "info"
    fix: str | None = None


@dataclasses.dataclass(frozen=True)
class DoctorResult:
    """Everything :func:`doctor` found, in order.

    Attributes:
        findings: the facts.
        healthy: nothing failed; warnings are allowed.
    """

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether no check failed."""
        return not self.problems("failed")

    def problems(self, *statuses: str) -> list[Finding]:
        """The findings with one of the given statuses; by default warnings and failures."""
        return [finding for finding in self.findings if finding.status in (statuses or ("warning", "failed"))]

    def get(self, section: str, name: str) -> Finding:
        """One finding. Raises KeyError."""
        for finding in self.findings:
            if (finding.section, finding.name) == (section, name):
                return finding
        raise KeyError(f"{section}: {name}")

    def table(self, width: int = 100, color: bool = False) -> str:
        """The findings as text of at most ``width`` columns, with what to do about each problem at the end."""
        table = Table.grid(padding=(0, 2))
        section = ""
        for finding in self.findings:
            if finding.section != section:
                section = finding.section
                table.add_row(Text(section, style="bold"))
            mark = "" if finding.status in ("ok", "info") else f"{finding.status.upper()}: "
            table.add_row(f"  {finding.name}", Text(mark + finding.value, style=_STYLES[finding.status]))
        lines = [
            Text(f"{finding.status.upper()} {finding.name}: {finding.value} {finding.fix or ''}".rstrip())
            for finding in self.problems()
        ]
        return text.render(table, *(lines or [Text("Nothing is wrong.")]), width=width, color=color)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a ``schema`` key."""
        findings = [dataclasses.asdict(finding) for finding in self.findings]
        return {"schema": SCHEMA, "healthy": self.healthy, "findings": findings}

    def to_json(self, path: str | Path | None = None) -> str:
        """The findings as JSON text, also written to ``path`` where one is given."""
        content = json.dumps(self.to_dict(), indent=2) + "\n"
        if path is not None:
            text.write(path, content)
        return content

    def __str__(self) -> str:
        return self.table()


def doctor(*, speed: bool = True) -> DoctorResult:
    """Look at versions, compiled parts, instruction sets, CPUs, threads, OpenMP runtimes, cache folder and speed.

    Args:
        speed: also time one int8 layer against float and check its result (well under a second).
    """
    parts: list[Callable[[], Iterator[Finding]]] = [_versions, _native_parts, _cuda, _instruction_sets]
    parts += [_cpus, _openmp, _cache]
    if speed:
        parts.append(_speed)
    return DoctorResult(tuple(finding for part in parts for finding in part()))


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "tersor", host.version_of("tersor") or "not installed, run from source")
    yield Finding("versions", "python", f"{platform.python_version()}, {platform.platform()}")
    for package in ("torch", "numpy", "safetensors"):
        version = host.version_of(package)
        if version is None:
            yield Finding("versions", package, "not installed", "failed", f"`pip install {package}`.")
            continue
        try:
            importlib.import_module(package)
        except Exception as error:
            fix = f"install it again: `pip install --force-reinstall {package}=={version}`."
            yield Finding("versions", package, f"{version}, but does not import ({error})", "failed", fix)
        else:
            yield Finding("versions", package, version)
    yield Finding("versions", "transformers", host.version_of("transformers") or "not installed (optional)")


def _native_parts() -> Iterator[Finding]:
    folder = Path(__file__).parent
    search = [folder, *(Path(path) for path in importlib.import_module("tersor").__path__)]
    library = next((path for place in search for path in place.glob("libtersor.*")), None)
    parts: list[tuple[str, Callable[[], object]]] = [("_C", _native.core), ("_torch_ops", _native.torch_ops)]
    if library is None:
        fix = "`pip install --force-reinstall tersor`, or `pip install .` in a checkout."
        yield Finding("compiled parts", "libtersor", "the file is missing", "failed", fix)
    else:
        yield Finding("compiled parts", "libtersor", str(library), "ok")
    for name, load in parts:
        try:
            load()
        except NativeError as error:
            yield Finding("compiled parts", name, error.cause, "failed", error.fix)
        except Exception as error:
            yield Finding("compiled parts", name, f"does not load: {error}", "failed", "see the finding on torch.")
        else:
            yield Finding("compiled parts", name, "loads", "ok")


def _cuda() -> Iterator[Finding]:
    if not _native.has_cuda_kernels():
        yield Finding("cuda", "kernels", "not built (optional: `TERSOR_CUDA=ON pip install .` where nvcc is)")
        return
    try:
        _native.cuda()
    except NativeError as error:
        yield Finding("cuda", "kernels", f"built, and not in use: {error.cause}")
        return
    yield Finding("cuda", "kernels", "built, and find a GPU", "ok")
    try:
        import torch

        found = torch.cuda.get_device_name() if torch.cuda.is_available() else "none that torch can use"
    except Exception as error:
        found = f"torch cannot say ({error})"
    yield Finding("cuda", "GPU", found)


def _core() -> Any:
    try:
        return _native.core()
    except Exception:
        return None  # reported under compiled parts


def _instruction_sets() -> Iterator[Finding]:
    cap = os.environ.get("TERSOR_ISA")
    yield Finding("instruction sets", "TERSOR_ISA", cap if cap else "not set")
    native = _core()
    if native is None:
        yield Finding("instruction sets", "active", "unknown without _C")
        return
    try:
        found = {"built": native.isas_built(), "available": native.isas_available(), "active": [native.isa_active()]}
    except RuntimeError as error:
        fix = "unset TERSOR_ISA, or set it to a name in the list."
        yield Finding("instruction sets", "active", str(error), "failed", fix)
        return
    for name, isas in found.items():
        yield Finding("instruction sets", name, ", ".join(isas), "ok" if name == "active" else "info")


def _cpus() -> Iterator[Finding]:
    yield Finding("cpu", "model", host.cpu_model())
    quota = host.cgroup_quota()
    yield Finding("cpu", "affinity", f"{host.affinity()} of {os.cpu_count()} CPUs")
    yield Finding("cpu", "cgroup quota", "none" if quota is None else f"{quota:g} CPUs")
    native = _core()
    usable = host.usable_cpus() if native is None else native.usable_cpus()
    yield Finding("cpu", "usable", f"{usable}")
    try:
        import torch

        threads = torch.get_num_threads()
    except Exception:
        return  # reported under versions
    if threads > usable:
        fix = f"call torch.set_num_threads({usable}) or set OMP_NUM_THREADS={usable}."
        yield Finding("cpu", "torch threads", f"{threads}, more than the usable CPUs", "warning", fix)
    else:
        yield Finding("cpu", "torch threads", str(threads))


def _openmp() -> Iterator[Finding]:
    found = host.openmp_runtimes()
    value = ", ".join(found) or "none loaded"
    if len(found) > 1:
        fix = "two pools of threads disturb each other; look for the package that brings the second one."
        yield Finding("cpu", "OpenMP runtimes", value, "warning", fix)
    else:
        yield Finding("cpu", "OpenMP runtimes", value)


def _cache() -> Iterator[Finding]:
    fix = "set TERSOR_CACHE_DIR to a folder that can be written to; without one every process measures anew."
    try:
        folder = host.cache_folder()
    except RuntimeError as error:
        yield Finding("cache", "folder", str(error), "warning", fix)
        return
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    count = len(list(folder.glob("tune-*.json"))) if folder.is_dir() else 0
    try:
        with tempfile.TemporaryFile(dir=existing):
            yield Finding("cache", "folder", f"{folder}, {count} measurement file{'' if count == 1 else 's'}", "ok")
    except OSError as error:
        yield Finding("cache", "folder", f"{folder} can't be written to ({error})", "warning", fix)


def _speed() -> Iterator[Finding]:
    try:
        from tersor.doctor_speed import measure

        rows, float_us, int8_us, error = measure()
    except Exception as problem:
        cause = str(problem).split("\n")[0]
        yield Finding("speed", "int8 layer", f"could not be run: {cause}", "failed", "see the findings above.")
        return
    times = f"{float_us / int8_us:.1f}x float ({text.microseconds(float_us)} -> {text.microseconds(int8_us)} us)"
    value = f"{times} for 384 -> 1536 at {rows} rows, error {100 * error:.2f} %"
    if not error < 0.03:
        yield Finding("speed", "int8 layer", value, "failed", "the result is wrong; please report it with this output.")
    elif int8_us > float_us:
        fix = "layers where int8 is slower stay float; see `tersor bench`."
        yield Finding("speed", "int8 layer", value, "warning", fix)
    else:
        yield Finding("speed", "int8 layer", value, "ok")

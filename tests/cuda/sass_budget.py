#!/usr/bin/env python3
"""Compares the machine code of every CUDA kernel with what is checked in: registers, memory, instructions.

sass_budget.py check LIBRARY BUDGET   fails where a kernel exceeds its budget, lost an instruction or has no budget
sass_budget.py write LIBRARY BUDGET   writes the budget that the library needs, to be read in a diff

A kernel's budget per architecture: registers and static shared memory at most; the matrix and copy instructions that it
must contain. LDL and STL (local memory: spills, arrays that left the registers) are forbidden everywhere. cuobjdump and
c++filt are looked for on PATH and beside this Python's packages (nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

Budget = dict[str, dict[str, dict[str, Any]]]  # architecture, kernel, what it may and must use

REQUIRED = re.compile(r"(IMMA|HMMA)\.(SP\.)?\d+[\w.]*|LDSM[\w.]*|LDGSTS|IDP\.4A[\w.]*")
FORBIDDEN = re.compile(r"(LDL|STL)\b")
MAX_SHARED = 99 << 10


def tool(name: str) -> str:
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    places = [str(path) for path in packages.glob("*/bin")]
    found = shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))
    if found is None:
        sys.exit(f"{name} not found: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, and binutils for c++filt")
    return found


def dump(library: Path, *options: str) -> str:
    program = tool("cuobjdump")
    path = os.pathsep.join([str(Path(program).parent), os.environ.get("PATH", "")])
    command = [program, *options, str(library)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}).stdout


def demangled(names: list[str]) -> dict[str, str]:
    """Mangled name to kernel<arguments> without namespaces and parameters."""
    lines = subprocess.run(
        [tool("c++filt"), "-p"], input="\n".join(names), check=True, capture_output=True, text=True
    ).stdout.splitlines()
    short = [re.sub(r"\(anonymous namespace\)::|[A-Za-z_]\w*::|^void ", "", line) for line in lines]
    return dict(zip(names, short, strict=True))


def measured(library: Path) -> Budget:
    """What the kernels of a shared library use."""
    usage: dict[tuple[str, str], dict[str, Any]] = {}
    arch = ""
    name = ""
    for line in dump(library, "-res-usage").splitlines():
        if match := re.match(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            usage[arch, name] = {"registers": registers, "shared": shared, "stack": stack, "local": local}
    for line in dump(library, "-sass").splitlines():
        if match := re.match(r"\s*code for (sm_\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            name = match[1]
            usage[arch, name] |= {"required": set(), "forbidden": set()}
        elif match := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?([A-Z][\w.]*)", line):
            if found := REQUIRED.match(match[1]):
                usage[arch, name]["required"].add(found[0])
            elif FORBIDDEN.match(match[1]):
                usage[arch, name]["forbidden"].add(match[1])
    short = demangled(sorted({name for _, name in usage}))
    kernels: Budget = {}
    for (arch, name), used in sorted(usage.items(), key=lambda item: (item[0][0], short[item[0][1]])):
        if "required" in used:  # a function without code of its own is no kernel
            kernels.setdefault(arch, {})[short[name]] = used
    return kernels


def problems(kernels: Budget, budget: Budget) -> list[str]:
    """One line for each difference that matters."""
    found = []
    for arch in sorted(kernels.keys() | budget.keys()):
        have, allowed = kernels.get(arch, {}), budget.get(arch, {})
        found += [f"{arch} {name}: is in the budget, not in the library" for name in sorted(allowed.keys() - have)]
        for name, used in have.items():
            where = f"{arch} {name}"
            found += [f"{where}: {op} is forbidden" for op in sorted(used["forbidden"])]
            if used["stack"] or used["local"]:
                found.append(f"{where}: {used['stack']} bytes of stack, {used['local']} of local memory")
            if used["shared"] > MAX_SHARED:
                found.append(f"{where}: {used['shared']} bytes of shared memory, at most {MAX_SHARED}")
            if name not in allowed:
                found.append(f"{where}: has no budget")
                continue
            for what in ("registers", "shared"):
                if used[what] > allowed[name][what]:
                    found.append(f"{where}: {used[what]} {what}, the budget is {allowed[name][what]}")
            missing = set(allowed[name]["required"]) - used["required"]
            found += [f"{where}: lost {op}" for op in sorted(missing)]
    return found


def main(action: str, library: Path, path: Path) -> int:
    kernels = measured(library)
    if action == "write":
        budget = {
            arch: {
                name: {"registers": used["registers"], "shared": used["shared"], "required": sorted(used["required"])}
                for name, used in names.items()
            }
            for arch, names in kernels.items()
        }
        lines = [
            f' "{arch}": {{\n'
            + ",\n".join(f"  {json.dumps(name)}: {json.dumps(used)}" for name, used in names.items())
            + "\n }"
            for arch, names in budget.items()
        ]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return 0
    found = problems(kernels, json.loads(path.read_text()))
    print("\n".join(found) or f"{sum(map(len, kernels.values()))} kernels within their budgets")
    return 1 if found else 0


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("check", "write"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))

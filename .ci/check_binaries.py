#!/usr/bin/env python3
"""Checks on built files that no compiler flag guarantees.

check_binaries.py symbols FILE...   every versioned symbol within manylinux_2_28
check_binaries.py baseline DIR      objects outside csrc/kernels/<isa>/ hold no ymm, zmm or tile register
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# What manylinux_2_28 promises to a binary.
LIMITS = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (8, 0, 0)}
VERSIONED = re.compile(r"\b(GLIBCXX|GLIBC|CXXABI|GCC)_(\d+(?:\.\d+)*)\b")
WIDE_REGISTER = re.compile(r"%(ymm|zmm|tmm)\d")
ISA_FOLDERS = {"avx2", "avxvnni", "avxvnni_evex", "avx512", "avx512vnni", "avx512vbmi2", "amx"}


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def too_new(path: Path) -> list[str]:
    found = set(VERSIONED.findall(output("objdump", "-T", str(path))))
    return sorted(
        f"{path.name}: {family}_{version} is newer than manylinux_2_28 allows"
        for family, version in found
        if tuple(int(part) for part in version.split(".")) > LIMITS[family]
    )


def wide_registers(folder: Path) -> list[str]:
    objects = [o for o in folder.rglob("*.o") if not ISA_FOLDERS & set(o.parts)]
    if not objects:
        return [f"{folder}: no object files found"]
    problems = []
    for path in objects:
        hits = WIDE_REGISTER.findall(output("objdump", "-d", "--no-show-raw-insn", str(path)))
        if hits:
            problems.append(f"{path.relative_to(folder)}: uses {', '.join(sorted(set(hits)))} outside an ISA folder")
    print(f"{len(objects)} baseline objects disassembled")
    return problems


def main(arguments: list[str]) -> int:
    if len(arguments) < 2 or arguments[0] not in ("symbols", "baseline"):
        print(__doc__, file=sys.stderr)
        return 2
    check = too_new if arguments[0] == "symbols" else wide_registers
    problems = [problem for path in arguments[1:] for problem in check(Path(path))]
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{arguments[0]}: {len(arguments) - 1} checked, all within limits")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

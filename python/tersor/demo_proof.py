"""Proof that a file is enough: a new Python process loads it and computes the same bits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tersor.errors import TersorError

_CHILD = """
import sys, torch, tersor
from tersor.demo_proof import digest, read_batches
file, batches, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
print(digest(tersor.load(file), read_batches(batches)))
"""


def digest(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> str:
    """SHA-256 over the bytes of every batch's last hidden state."""
    sha = hashlib.sha256()
    with torch.inference_mode():
        for batch in batches:
            output: Tensor = model(**batch).last_hidden_state
            sha.update(output.contiguous().numpy().tobytes())
    return sha.hexdigest()


def write_batches(batches: Sequence[Mapping[str, Tensor]], path: str | Path) -> None:
    """Write batches of tensors to a safetensors file."""
    save_file({f"{index}.{key}": value for index, batch in enumerate(batches) for key, value in batch.items()}, path)


def read_batches(path: str | Path) -> list[dict[str, Tensor]]:
    """What :func:`write_batches` wrote."""
    batches: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(path).items():
        index, key = name.split(".", 1)
        batches.setdefault(int(index), {})[key] = value
    return [batches[index] for index in sorted(batches)]


def digest_in_new_process(file: Path, batches: Sequence[Mapping[str, Tensor]], timeout: float = 120.0) -> str:
    """What :func:`digest` gives in a fresh process that knows nothing but the file and the batches.

    Raises:
        TersorError: the process failed or took longer than ``timeout`` seconds; the message ends with its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "batches.safetensors")
        write_batches(batches, inputs)
        command = [sys.executable, "-c", _CHILD, str(file.resolve()), str(inputs), str(torch.get_num_threads())]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
        except subprocess.TimeoutExpired as error:
            raise TersorError(f"a new process did not load {file} within {timeout:.0f} s") from error
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise TersorError(f"a new process could not load {file}: {last}")
    return child.stdout.strip()

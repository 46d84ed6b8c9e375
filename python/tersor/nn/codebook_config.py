"""The description of a layer whose weights are codes, as it stands in a file, and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tersor.nn.codebook_packed import code_bytes
from tersor.nn.linear_config import checked_config
from tersor.nn.packed_layer import DTYPES, Expected
from tersor.quantize.codebooks import CODEBOOKS

TABLES = ("one", "row", "group")
"""Who has a table of their own: nobody, each output, each group of each output."""

_OWN = ("bits", "group_size", "tables", "codebook")


def check_codes_settings(bits: Any, group_size: Any, tables: Any, codebook: Any) -> None:
    """Raises ValueError unless a layer can have these settings."""
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ValueError(f"bits: expected an integer in [2, 8], got {bits!r}")
    if type(group_size) is not int or not (group_size == 0 or (32 <= group_size <= 65536 and group_size % 32 == 0)):
        raise ValueError(f"group_size: expected 0 (a whole row) or a multiple of 32 up to 65536, got {group_size!r}")
    if not isinstance(tables, str) or tables not in TABLES:
        raise ValueError(f"tables: expected one of {', '.join(TABLES)}, got {tables!r}")
    if not isinstance(codebook, str) or (codebook and codebook not in CODEBOOKS):
        known = ", ".join(sorted(CODEBOOKS))
        raise ValueError(f"codebook: expected '' or one of {known}, got {codebook!r}")


def checked_codes_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config`; raises ValueError when a key is missing, unexpected or holds a value that is not valid."""
    if not isinstance(config, Mapping) or not set(_OWN) <= set(config):
        got = sorted(map(str, config)) if isinstance(config, Mapping) else type(config).__name__
        raise ValueError(f"config: expected {', '.join(_OWN)} among the keys, got {got}")
    checked_config({key: value for key, value in config.items() if key not in _OWN})
    check_codes_settings(*(config[key] for key in _OWN))
    if config["group_size"] >= config["in_features"]:
        raise ValueError(f"group_size: expected 0 or less than in_features, got {config['group_size']}")
    return dict(config)


def groups_of(config: Mapping[str, Any]) -> int:
    """Scales of a row."""
    return 1 if config["group_size"] == 0 else -(-config["in_features"] // config["group_size"])


def expected_codes(config: Mapping[str, Any]) -> Expected:
    """Names, dtypes and shapes of the canonical tensors of a checked config."""
    n, k, groups = config["out_features"], config["in_features"], groups_of(config)
    tables = {"one": (), "row": (n,), "group": (n, groups)}[config["tables"]]
    expected: Expected = {
        "weight_codes": (torch.uint8, (n, code_bytes(k, config["bits"]))),
        "weight_table": (torch.int8, (*tables, 2 ** config["bits"])),
        "weight_scale": (torch.float32, (n, groups)),
    }
    if config["smoothed"]:
        expected["input_scale"] = (torch.float32, (k,))
    if config["bias"]:
        expected["bias"] = (DTYPES[config["dtype"]], (n,))
    return expected

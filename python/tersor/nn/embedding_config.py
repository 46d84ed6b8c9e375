"""The description of an embedding, as it stands in a file, and its checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tersor.nn.packed_layer import DTYPES, Expected

MODES = ("sum", "mean", "max")


def checked_embedding(config: Any, fields: Sequence[str]) -> dict[str, Any]:
    """A copy of `config`; raises ValueError when a key is missing, unexpected or holds a value that is not valid."""
    expected = {*fields, "dtype"}
    if not isinstance(config, Mapping) or set(config) != expected:
        got = sorted(map(str, config)) if isinstance(config, Mapping) else type(config).__name__
        raise ValueError(f"config: expected exactly {', '.join(sorted(expected))}, got {got}")
    for name, most in (("num_embeddings", 1 << 40), ("embedding_dim", 1 << 20)):
        if type(config[name]) is not int or not 0 < config[name] < most:
            raise ValueError(f"{name}: expected an integer in [1, {most}), got {config[name]!r}")
    padding = config["padding_idx"]
    if padding is not None and (type(padding) is not int or not 0 <= padding < config["num_embeddings"]):
        raise ValueError(f"padding_idx: expected null or a row, got {padding!r}")
    if type(config["bits"]) is not int or config["bits"] not in (4, 8):
        raise ValueError(f"bits: expected 8 or 4, got {config['bits']!r}")
    if not isinstance(config["dtype"], str) or config["dtype"] not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {config['dtype']!r}")
    if "mode" in config and (not isinstance(config["mode"], str) or config["mode"] not in MODES):
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {config['mode']!r}")
    if "include_last_offset" in config and type(config["include_last_offset"]) is not bool:
        raise ValueError(f"include_last_offset: expected true or false, got {config['include_last_offset']!r}")
    return dict(config)


def expected_embedding(config: Mapping[str, Any]) -> Expected:
    """Names, dtypes and shapes of the canonical tensors of a checked config."""
    rows, dim = config["num_embeddings"], config["embedding_dim"]
    scale: Expected = {"weight_scale": (torch.float32, (rows,))}
    if config["bits"] == 8:
        return {"weight_q": (torch.int8, (rows, dim)), **scale}
    return {"weight_q4": (torch.uint8, (rows, (dim + 1) // 2)), **scale}


def embedding_problem(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """What keeps a float embedding from becoming a quantised one; None when nothing does."""
    if type(module) is not kind:
        return f"{type(module).__name__} is not an nn.{kind.__name__}"
    if "forward" in module.__dict__:
        return f"{type(module).__name__} has a forward of its own"
    if getattr(module, "max_norm", None) is not None:
        return "it renormalises its rows as they are read (max_norm)"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed by a hook: make it permanent first"
    if weight.dtype not in DTYPES.values():
        return f"its weight is {weight.dtype}; supported are {', '.join(DTYPES)}"
    if weight.device.type != "cpu" or not weight.numel():
        return f"its weight is {list(weight.shape)} on {weight.device}; expected rows on the CPU"
    if not bool(torch.isfinite(weight).all()):
        return "its weight holds NaN or infinity"
    return None

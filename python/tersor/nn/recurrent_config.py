"""The description of a recurrent layer, as it stands in a file, and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tersor.nn.packed_layer import DTYPES, Expected, PackedLayer

GATES = {"gru": 3, "lstm": 4}

_CELL = {"input_size": int, "hidden_size": int, "bias": bool, "dtype": str}
_LAYER = {**_CELL, "num_layers": int, "batch_first": bool, "dropout": float, "bidirectional": bool}


def checked_recurrent(config: Any, is_cell: bool) -> dict[str, Any]:
    """A copy of `config`; raises ValueError when a key is missing, unexpected or holds a value that is not valid."""
    expected = _CELL if is_cell else _LAYER
    if not isinstance(config, Mapping) or set(config) != set(expected):
        got = sorted(map(str, config)) if isinstance(config, Mapping) else type(config).__name__
        raise ValueError(f"config: expected exactly {', '.join(expected)}, got {got}")
    for name, kind in expected.items():
        value: Any = config[name]
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise ValueError(f"{name}: expected {kind.__name__}, got {value!r}")
        if kind is int and isinstance(value, int) and not 0 < value < 1 << 28:
            raise ValueError(f"{name}: expected an integer in [1, 2^28), got {value!r}")
    if config["dtype"] not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {config['dtype']!r}")
    if not is_cell and not 0 <= config["dropout"] <= 1:
        raise ValueError(f"dropout: expected a number in [0, 1], got {config['dropout']!r}")
    if not is_cell and config["num_layers"] > 4096:
        raise ValueError(f"num_layers: expected at most 4096, got {config['num_layers']}")
    return dict(config)


def suffixes_of(config: Mapping[str, Any]) -> list[str]:
    """What torch appends to the names of each layer and direction; "" for a cell."""
    if "num_layers" not in config:
        return [""]
    directions = ("", "_reverse") if config["bidirectional"] else ("",)
    return [f"_l{layer}{direction}" for layer in range(config["num_layers"]) for direction in directions]


def expected_recurrent(cell: str, config: Mapping[str, Any]) -> Expected:
    """Names, dtypes and shapes of the canonical tensors of a checked config."""
    hidden, width = config["hidden_size"], GATES[cell] * config["hidden_size"]
    directions = 2 if config.get("bidirectional") else 1
    expected: Expected = {}
    for index, s in enumerate(suffixes_of(config)):
        columns = config["input_size"] if index < directions else hidden * directions
        for part, depth in (("weight_ih", columns), ("weight_hh", hidden)):
            expected[f"{part}{s}_q"] = (torch.int8, (width, depth))
            expected[f"{part}{s}_scale"] = (torch.float32, (width,))
        if config["bias"]:
            expected |= {f"{name}{s}": (torch.float32, (width,)) for name in ("bias_ih", "bias_hh")}
    return expected


def recurrent_problem(module: nn.Module, kind: type[nn.Module]) -> str | None:
    """What keeps a float recurrent layer or cell from becoming an int8 one; None when nothing does."""
    if type(module) is not kind:
        return f"{type(module).__name__} is not an nn.{kind.__name__}"
    if "forward" in module.__dict__:
        return f"{type(module).__name__} has a forward of its own"
    if getattr(module, "proj_size", 0):
        return f"it projects its state to {module.proj_size} values (proj_size); int8 layers have no projection"
    for name, parameter in module._parameters.items():
        if parameter is None:
            continue
        if parameter.dtype not in DTYPES.values():
            return f"its {name} is {parameter.dtype}; supported are {', '.join(DTYPES)}"
        if parameter.device.type != "cpu":
            return f"its {name} is on {parameter.device}; move it to the CPU first"
        if not bool(torch.isfinite(parameter).all()):
            return f"its {name} holds NaN or infinity"
    if not any(name.startswith("weight_hh") for name in module._parameters):
        return "its weights are computed by hooks (weight norm): make them permanent first"
    return None


def place_problem(config: Mapping[str, Any], module: nn.Module, kind: type[nn.Module]) -> str | None:
    """Why a layer of this valid config can't take the place of `module`, or None when it can."""
    if not isinstance(module, kind | PackedLayer):
        return f"is a {type(module).__name__} in the model, not an nn.{kind.__name__}"
    for key, value in config.items():
        own = getattr(module, key, value)
        if key not in ("dtype", "dropout") and own != value:
            return f"has {key} {value} in the file and {own!r:.100} in the model"
    return None

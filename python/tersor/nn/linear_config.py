"""The description of a linear layer, as it stands in a file, and its checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tersor.nn.packed_layer import DTYPES
from tersor.nn.sparse_weight import grid_of
from tersor.ops import ACTIVATIONS

_MAX_EXTENT = (1 << 31) - 1


def check_settings(k: Any, n: Any, activation: Any, x_scale: Any, x_zero_point: Any) -> None:
    """Raises ValueError unless a layer can have k inputs, n outputs and these settings."""
    for name, value in (("in_features", k), ("out_features", n)):
        if type(value) is not int or not 0 < value <= _MAX_EXTENT:
            raise ValueError(f"{name}: expected an integer in [1, {_MAX_EXTENT}], got {value!r}")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    number = isinstance(x_scale, (int, float)) and not isinstance(x_scale, bool)
    info = torch.finfo(torch.float32)
    if not number or not (x_scale == 0 or (math.isfinite(x_scale) and info.tiny <= x_scale <= info.max)):
        raise ValueError(f"x_scale: expected 0 (dynamic) or a positive normal float32, got {x_scale!r}")
    if type(x_zero_point) is not int or not 0 <= x_zero_point <= 255:
        raise ValueError(f"x_zero_point: expected an integer in [0, 255], got {x_zero_point!r}")


def checked_input_scale(input_scale: Tensor, k: int) -> Tensor:
    """`input_scale` without its graph; raises ValueError unless it is float32 [k] on the CPU, finite and positive."""
    if input_scale.dtype != torch.float32 or tuple(input_scale.shape) != (k,) or input_scale.device.type != "cpu":
        got = f"{input_scale.dtype} {list(input_scale.shape)} on {input_scale.device}"
        raise ValueError(f"input_scale: expected torch.float32 [{k}] on cpu, got {got}")
    if not bool((torch.isfinite(input_scale) & (input_scale > 0)).all()):
        raise ValueError("input_scale: expected values that are finite and greater than 0")
    return input_scale.detach()


def checked_config(config: Mapping[str, Any], sparse: bool = False, quantised: bool = True) -> dict[str, Any]:
    """A copy of `config`; raises ValueError when a key is missing, unexpected or holds a value that is not valid.

    `sparse`: it has a `pattern` and the number `kept` of blocks that are not 0. `quantised`: it says how x is.
    """
    names = ["in_features", "out_features", "activation", "bias", "dtype"]
    names += ["x_scale", "x_zero_point", "smoothed"] * quantised + ["pattern", "kept"] * sparse
    if not isinstance(config, Mapping) or set(config) != set(names):
        got = sorted(map(str, config)) if isinstance(config, Mapping) else type(config).__name__
        raise ValueError(f"config: expected exactly {', '.join(names)}, got {got}")
    x_scale, x_zero_point = (config["x_scale"], config["x_zero_point"]) if quantised else (0, 0)
    check_settings(config["in_features"], config["out_features"], config["activation"], x_scale, x_zero_point)
    for name in ("bias", *(("smoothed",) if quantised else ())):
        if type(config[name]) is not bool:
            raise ValueError(f"{name}: expected true or false, got {config[name]!r}")
    if not isinstance(config["dtype"], str) or config["dtype"] not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {config['dtype']!r}")
    if sparse:
        grid, kept = grid_of(config["pattern"], config["out_features"], config["in_features"]), config["kept"]
        if type(kept) is not int or not 0 <= kept <= grid.blocks:
            raise ValueError(f"kept: expected an integer in [0, {grid.blocks}], got {kept!r}")
    return dict(config)

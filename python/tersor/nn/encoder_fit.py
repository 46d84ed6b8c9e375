"""Whether an encoder block can take the place of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from tersor.encoder.family import find_family
from tersor.encoder.probe import shape_of
from tersor.nn.encoder_config import BlockConfig
from tersor.nn.encoder_frame import look
from tersor.nn.encoder_tree import OWN

if TYPE_CHECKING:
    from tersor.nn.encoder_block import EncoderBlock


def differences(settings: BlockConfig, module: nn.Module) -> str | None:
    """Why a block of these settings can't take the place of `module`, or None when it can."""
    try:
        problem = _shape_difference(settings, module)
        found = None if problem else look(module)  # tried out only where its size is that of the settings
    except ValueError as error:
        return f"can't take the place of a {type(module).__name__}: {error}"
    if problem is None and (found is None or found.anatomy.norm_first is not settings.norm_first):
        problem = f"has norm_first {settings.norm_first} in the file and another order in the model"
    return problem


def _shape_difference(settings: BlockConfig, module: nn.Module) -> str | None:
    found = find_family(module)
    if found is None:
        return f"is a {type(module).__name__} in the model, which is no encoder block of a known form"
    shape = shape_of(module, found[1])
    own = {
        "hidden": (settings.hidden, shape.hidden),
        "heads": (settings.heads, shape.heads),
        "head_dim": (settings.head_dim, shape.attention // shape.heads),
        "ffn": (settings.ffn, shape.ffn),
        "activation": (settings.activation, shape.activation),
        "eps1": (settings.eps1, shape.eps1),
        "eps2": (settings.eps2, shape.eps2),
    }
    for name, (ours, theirs) in own.items():
        if ours != theirs:
            return f"has {name} {ours} in the file and {theirs} in the model"
    return None


def clash(base: type[EncoderBlock], module: nn.Module) -> str | None:
    """Why a block can't have the attributes of `module`, or None when it can."""
    taken = [key for key in module.__dict__ if key not in OWN and hasattr(base, key)]
    return f"an encoder block has no place for its attribute {', '.join(taken)}" if taken else None

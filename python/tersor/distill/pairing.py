"""Which layer of the student learns from which layer of the teacher."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from torch import nn

from tersor.distill.losses import FeatureLoss
from tersor.distill.taps import show
from tersor.errors import DistillError

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a layer -> the shape of its feature, in the order of the calls."""

Pairs = list[tuple[str, str]]
AUTOMATIC = ("auto", "uniform", "same_shape")


def pair(loss: FeatureLoss, student: nn.Module, teacher: nn.Module, ours: Shapes, theirs: Shapes) -> Pairs:
    """The pairs (layer of the student, layer of the teacher) that a loss asks for.

    ``"uniform"``: the blocks of both, spread evenly, the last ones together (layer maps of TinyBERT); blocks are the
    children of the ``ModuleList`` or ``Sequential`` of equal modules with the most parameters; a loss on attention maps
    takes the layers that return some. ``"same_shape"``: layers with weights whose outputs have the same shape: those of
    the same name where there are any, else in the order of the calls. ``"auto"``: the former, where both models have
    blocks, else the latter. A mapping has names, or wildcards such as ``"encoder.layer.*"`` (an asterisk stays between
    two dots), whose layers are spread evenly too.

    Args:
        ours, theirs: the features that were seen.

    Raises:
        DistillError: an unknown name or word, or no pairs; the message lists both sides.
    """
    sides = f"student: {show(ours)}; teacher: {show(theirs)}"
    if not isinstance(loss.layers, str):
        return _given(loss, ours, theirs)
    if loss.layers not in AUTOMATIC:
        raise DistillError(
            f"loss {loss.name!r}: layers = {loss.layers!r} is not known; known: {', '.join(AUTOMATIC)}, or a table of "
            f"layers of the student = layers of the teacher. {sides}"
        )
    found: Pairs = []
    if loss.layers in ("auto", "uniform"):
        found = uniform(_candidates(student, ours), _candidates(teacher, theirs))
    if not found and loss.layers in ("auto", "same_shape"):
        found = _same_shape(student, teacher, ours, theirs)
    if not found:
        raise DistillError(f"loss {loss.name!r}: layers = {loss.layers!r} finds no pairs of layers. {sides}")
    return found


def uniform(student: Sequence[str], teacher: Sequence[str]) -> Pairs:
    """Each layer of the shorter list with one of the longer, spread evenly, the last ones together."""
    count = min(len(student), len(teacher))
    return [
        (student[(index + 1) * len(student) // count - 1], teacher[(index + 1) * len(teacher) // count - 1])
        for index in range(count)
    ]


def blocks(model: nn.Module) -> list[str]:
    """The names of a model's repeated blocks; empty where there are none."""
    best: list[str] = []
    most = 0
    for name, module in model.named_modules():
        children = list(module.named_children())
        alike = len(children) > 1 and len({type(child) for _, child in children}) == 1
        if alike and isinstance(module, nn.ModuleList | nn.Sequential):
            size = sum(parameter.numel() for parameter in module.parameters())
            if size > most:
                best, most = [f"{name}.{key}" if name else key for key, _ in children], size
    return best


def _candidates(model: nn.Module, shapes: Shapes) -> list[str]:
    found = [name for name in blocks(model) if name in shapes]
    inner = [name for name in shapes if not any(other.startswith(f"{name}.") for other in shapes)]
    # A loss that sees features within the blocks only, such as attention maps, takes those.
    return found or (inner if blocks(model) else [])


def _same_shape(student: nn.Module, teacher: nn.Module, ours: Shapes, theirs: Shapes) -> Pairs:
    mine, other = _weighted(student, ours), _weighted(teacher, theirs)
    named = [(name, name) for name in mine if name in other and ours[name] == theirs[name]]
    if named:
        return named
    found, start = [], 0
    for name in mine:
        match = next((at for at in range(start, len(other)) if theirs[other[at]] == ours[name]), None)
        if match is not None:
            found.append((name, other[match]))
            start = match + 1
    return found


def _weighted(model: nn.Module, shapes: Shapes) -> list[str]:
    modules = dict(model.named_modules())
    return [
        name for name in shapes if any(parameter.dim() > 1 for parameter in modules[name].parameters(recurse=False))
    ]


def _given(loss: FeatureLoss, ours: Shapes, theirs: Shapes) -> Pairs:
    assert isinstance(loss.layers, Mapping)
    found: Pairs = []
    for mine, other in loss.layers.items():
        one = _matching(loss, "student", mine, ours)
        two = _matching(loss, "teacher", other, theirs)
        if len(one) > len(two):
            raise DistillError(
                f"loss {loss.name!r}: {mine!r} are {len(one)} layers of the student ({', '.join(one)}), but {other!r} "
                f"are only {len(two)} of the teacher ({', '.join(two)})"
            )
        found += uniform(one, two)
    if not found:
        raise DistillError(f'loss {loss.name!r}: layers is an empty table; use "auto" or name some')
    return found


def _matching(loss: FeatureLoss, side: str, pattern: str, shapes: Shapes) -> list[str]:
    parts = pattern.split(".")
    found = [
        name
        for name in shapes
        if len(split := name.split(".")) == len(parts) and all(map(fnmatch.fnmatchcase, split, parts))
    ]
    if not found:
        raise DistillError(
            f"loss {loss.name!r}: {pattern!r} is no layer of the {side} with a feature for it; "
            f"there are {show(shapes, 40)}"
        )
    return found


def objection(loss: FeatureLoss, ours: tuple[int, ...], theirs: tuple[int, ...]) -> str | None:
    """Why a loss can't compare features of these shapes, in words; None where it can."""
    if ours[0] != theirs[0]:
        return "their first dimensions, the examples of the batch, differ"
    if ours[0] < 2 and loss.compares == "examples":
        return "it compares the examples of a batch, and there is only one"
    if loss.compares == "examples":
        return None
    if len(ours) != len(theirs):
        return f"they have {len(ours)} and {len(theirs)} dimensions"
    if len(ours) not in (2, 3, 4):
        return "a feature has 2 (batch, channels), 3 (batch, tokens, channels) or 4 dimensions (batch, channels, h, w)"
    if len(ours) == 3 and ours[1] != theirs[1]:
        return f"they have {ours[1]} and {theirs[1]} tokens"
    return None

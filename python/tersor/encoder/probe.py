"""Trying out whether a module of a known structure computes what an encoder block does.

Structure alone doesn't say how attention is scaled, where norms act or what a mask means, and libraries change. So a
copy of the block with random weights is called on a few tokens, with and without padding, and compared with the
definition in tersor.encoder.reference.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tersor.encoder.family import Anatomy, Family, find_family, part
from tersor.encoder.reference import encoder_block, layers_of, padded_scores

_BATCH, _TOKENS = 2, 6
_MOST_KEPT = 10_000
_TOLERANCE = 1e-4  # relative 2-norm; float32 with weights of order 1 stays below 1e-5, another formula is above 1e-2


class Found(NamedTuple):
    """An encoder block: its family, its parts, and whether it returns a tuple."""

    family: type[Family]
    anatomy: Anatomy
    returns_tuple: bool


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """The numbers of a block: see tersor.encoder.reference.Shape; `attention` is heads * head size."""

    hidden: int
    attention: int
    ffn: int
    heads: int
    activation: str
    norm_first: bool
    eps1: float
    eps2: float


class Probe:
    """Finds out what modules are; what was found for one holds for others that differ in their weights alone."""

    def __init__(self) -> None:
        self._known: dict[object, tuple[Anatomy, bool] | str] = {}
        self._alive: list[object] = []  # what keys name by its id

    def look(self, module: nn.Module) -> Found | None:
        """What `module` is, or None where it has another structure.

        Raises:
            ValueError: it has the structure of an encoder block but can't be replaced by one; the message says why.
        """
        found = find_family(module)
        if found is None:
            return None
        family, anatomy = found
        if len(self._alive) > _MOST_KEPT:
            self.__init__()  # type: ignore[misc]
        key = (family, anatomy, _fingerprint(module, self._alive))
        if key not in self._known:
            try:
                self._known[key] = _try_out(module, family, anatomy)
            except ValueError as error:
                self._known[key] = str(error)
        result = self._known[key]
        if isinstance(result, str):
            raise ValueError(result)
        return Found(family, *result)


def shape_of(module: nn.Module, anatomy: Anatomy) -> BlockShape:
    """The numbers of a block.

    Raises:
        ValueError: its layers don't fit together.
    """
    up, down, out = (_features(module, path) for path in (anatomy.up, anatomy.down, anatomy.out))
    norm1, norm2 = (part(module, path) for path in anatomy.norms)
    assert isinstance(norm1, nn.LayerNorm)
    assert isinstance(norm2, nn.LayerNorm)
    hidden, attention, ffn = out[0], out[1], up[0]
    inner = [_features(module, path) for path in anatomy.qkv] if len(anatomy.qkv) == 3 else []
    fits = all(features == (attention, hidden) for features in inner)
    fits &= up == (ffn, hidden) and down == (hidden, ffn) and attention % anatomy.heads == 0
    if not fits or norm1.normalized_shape != (hidden,) or norm2.normalized_shape != (hidden,):
        raise ValueError(f"its layers don't fit together: out {out}, up {up}, down {down}, {anatomy.heads} heads")
    return BlockShape(
        hidden, attention, ffn, anatomy.heads, anatomy.activation, bool(anatomy.norm_first), norm1.eps, norm2.eps
    )


def _features(module: nn.Module, path: str) -> tuple[int, int]:
    layer: Any = part(module, path)
    return layer.out_features, layer.in_features


def float_weights(module: nn.Module, anatomy: Anatomy) -> dict[str, Tensor]:
    """The tensors of a block as tersor.encoder.reference names them; an absent bias is 0."""
    weights: dict[str, Tensor] = {}
    if len(anatomy.qkv) == 1:
        attention: Any = part(module, anatomy.qkv[0])
        weights["qkv.weight"] = attention.in_proj_weight
        bias = attention.in_proj_bias
        weights["qkv.bias"] = torch.zeros(len(attention.in_proj_weight)) if bias is None else bias
    else:
        layers: list[Any] = [part(module, path) for path in anatomy.qkv]
        weights["qkv.weight"] = torch.cat([layer.weight + 0 for layer in layers])
        weights["qkv.bias"] = torch.cat([_bias(layer) for layer in layers])
    for name in ("out", "up", "down", "norm1", "norm2"):
        layer: Any = part(module, getattr(anatomy, name))
        weights[f"{name}.weight"], weights[f"{name}.bias"] = layer.weight + 0, _bias(layer)
    return {name: tensor.detach() for name, tensor in weights.items()}


def _bias(layer: Any) -> Tensor:
    return torch.zeros(layer.weight.shape[0], dtype=layer.weight.dtype) if layer.bias is None else layer.bias + 0


def _fingerprint(module: nn.Module, alive: list[object]) -> object:
    """What is known about a block but its weights and its place: types and plain attributes of its modules.

    What is no plain value counts by its identity, and is added to `alive` so that its id stays its own.
    """
    entries = []
    for path, inner in module.named_modules():
        plain: list[object] = []
        for key, value in sorted(inner.__dict__.items()):
            if key.startswith("_") or key in ("layer_idx", "training"):
                continue
            if isinstance(value, int | float | str | None):
                plain.append((key, value))
            else:
                alive.append(value)
                plain.append((key, id(value), getattr(value, "_attn_implementation", None)))
        shapes = tuple((key, None if p is None else tuple(p.shape)) for key, p in inner._parameters.items())
        entries.append((path, type(inner), tuple(plain), shapes))
    return tuple(entries)


def _try_out(module: nn.Module, family: type[Family], anatomy: Anatomy) -> tuple[Anatomy, bool]:
    generator = torch.Generator().manual_seed(0)
    block = _randomised(module, generator)
    shape = shape_of(block, anatomy)
    x = torch.randn((_BATCH, _TOKENS, shape.hidden), generator=generator)
    keep = torch.ones((_BATCH, _TOKENS), dtype=torch.bool)
    score_bias = torch.randn((anatomy.heads, _TOKENS, _TOKENS), generator=generator) if family.bias_name else None
    possible = [anatomy.norm_first] if anatomy.norm_first is not None else [False, True]
    layers = layers_of(float_weights(block, anatomy), shape.eps1, shape.eps2)
    returns_tuple = False
    for padded in (False, True):
        if padded:
            keep[1, -2:] = False
        y, returns_tuple = _called(block, family, x, keep if padded else None, score_bias)
        scores = padded_scores(keep, score_bias)
        forms = {first: dataclasses.replace(shape, norm_first=first) for first in possible}
        possible = [
            first for first in possible if _apart(encoder_block(x, layers, forms[first], scores), y, keep) < _TOLERANCE
        ]
        if not possible:
            what = "with padding" if padded else "without a mask"
            raise ValueError(f"tried out {what}, it computes something else than the encoder block that it looks like")
    return dataclasses.replace(anatomy, norm_first=possible[0]), returns_tuple


def _apart(expected: Tensor, y: Tensor, keep: Tensor) -> float:
    if y.shape != expected.shape:
        return torch.inf
    return float((y - expected)[keep].norm() / expected[keep].norm())


def _randomised(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A float32 copy without hooks, with random weights that let every part matter."""
    try:
        block = copy.deepcopy(module)
        if any(parameter.is_meta for parameter in block.parameters()):
            block.to_empty(device="cpu")
        block = block.to(torch.float32).eval()
    except Exception as error:
        raise ValueError(f"it can't be copied to try it out: {type(error).__name__}: {error}") from error
    for inner in block.modules():
        for key in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            inner.__dict__[key].clear()
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                parameter.copy_(values * 2 / parameter.shape[1] ** 0.5)
            else:
                parameter.copy_(values / 2 + name.endswith("weight"))
    return block


def _called(
    block: nn.Module, family: type[Family], x: Tensor, keep: Tensor | None, score_bias: Tensor | None
) -> tuple[Tensor, bool]:
    """The output of a float block and whether it came in a tuple; the forms of mask are tried one after another."""
    problem: Exception | None = None
    bias = None if score_bias is None else score_bias.expand(_BATCH, -1, -1, -1).contiguous()
    for mask in _masks(keep, family):
        try:
            with torch.no_grad():
                output = block(**_arguments(block, family, x, mask, bias))
        except Exception as error:
            problem = error
            continue
        y = output[0] if isinstance(output, tuple) else output
        if isinstance(y, Tensor):
            return y, isinstance(output, tuple)
    raise ValueError(f"tried out, it failed: {type(problem).__name__}: {problem}")


def _masks(keep: Tensor | None, family: type[Family]) -> Iterator[Tensor | None]:
    if keep is None:
        yield None
    elif family.true_is_kept:
        scores = torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)
        yield scores[:, None, None].expand(-1, 1, _TOKENS, -1).contiguous()
        yield keep.long()
    else:
        yield ~keep


def _arguments(
    block: nn.Module, family: type[Family], x: Tensor, mask: Tensor | None, score_bias: Tensor | None
) -> Mapping[str, Tensor | None]:
    parameters = list(inspect.signature(block.forward).parameters.values())
    names = {parameter.name for parameter in parameters}
    arguments: dict[str, Tensor | None] = {
        parameter.name: None
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    arguments[parameters[0].name] = x
    arguments |= {name: mask for name in family.mask_names if name in names}
    return arguments if score_bias is None else {**arguments, family.bias_name: score_bias}


PROBE = Probe()
"""The one that everybody asks."""

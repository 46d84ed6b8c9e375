"""Large convolution kernels replaced by smaller ones that are fitted to what the large ones compute."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tersor import modules, observe, structure
from tersor.errors import StructureError
from tersor.prune.calibration import Calibration
from tersor.restructure.small_kernels import METHODS, Method
from tersor.selection import matches
from tersor.structure import checks


@dataclass(frozen=True)
class ShrinkRow:
    """One convolution that was replaced.

    Attributes:
        name: of the layer.
        before, after: the kernel sizes, such as ``"5x5"`` and ``"3x3"``.
        error: relative error of its outputs on the calibration inputs (2-norms), against the float model's.
        weights_before, weights_after: how many.
    """

    name: str
    before: str
    after: str
    error: float
    weights_before: int
    weights_after: int


@dataclass(frozen=True)
class ShrinkResult:
    """What :func:`shrink_kernels` did: the replaced layers, and why other large kernels stay, by name."""

    rows: tuple[ShrinkRow, ...]
    kept: Mapping[str, str]


def shrink_kernels(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    method: Literal["single", "stacked", "separable"] = "single",
    max_error: float | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> ShrinkResult:
    """Replaces the convolutions of ``model`` whose kernel is larger than 3x3, in place, one after another.

    Each replacement is fitted by least squares, so that on the calibration inputs, as the model so far makes them, it
    computes what the layer computes in the float model: later layers make up for errors of earlier ones as far as they
    can. Strides and sizes of outputs stay. On failure the model is as before.

    Args:
        model: changed in place, and run in eval mode without gradients.
        calibration: batches: tensors, tuples or lists of arguments, mappings of keyword arguments; iterated three
            times per layer. A few hundred images are enough: each fit looks at 16384 places of every batch.
        method: ``"single"``: one 3x3 convolution, also for depthwise and grouped ones; ``"stacked"``: as many 3x3
            convolutions in a row as reach as far (two for 5x5, three for 7x7), begun with the singular vectors of the
            kernel under the covariance of the inputs; ``"separable"``: a depthwise 3x3 and a 1x1.
        max_error: layers whose outputs have a larger relative error stay as they are; None: none does.
        include, exclude: shell wildcards on names of layers.

    Raises:
        StructureError: no kernel can be shrunk (the message says why), or the model fails on the data.
    """
    if method not in METHODS:
        raise StructureError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    data, make = Calibration(calibration), METHODS[method]
    saved, teacher = structure.Snapshot(model), copy.deepcopy(model)
    rows: list[ShrinkRow] = []
    kept: dict[str, str] = {}
    try:
        tied = modules.tied_parameters(model)
        for name, layer in _large(model):
            reason = _refusal(name, layer, make, include, exclude) or tied.get(id(layer))
            if reason is None:
                reason = _shrink(model, teacher, name, make, data, max_error, rows)
            if reason is not None:
                kept[name] = reason
        _run(model, next(iter(data.batches)))
    except BaseException:
        saved.restore()
        raise
    if not rows:
        raise StructureError(f"no kernel can be shrunk. {checks.listed(kept) or 'The model has none larger than 3x3'}")
    return ShrinkResult(tuple(rows), kept)


def _large(model: nn.Module) -> list[tuple[str, Any]]:
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 3
    ]


def _refusal(name: str, layer: Any, make: type[Method], include: Sequence[str], exclude: Sequence[str]) -> str | None:
    height, width = layer.kernel_size
    if (pattern := matches([name], exclude)) is not None:
        return f"excluded by {pattern!r}"
    if include and matches([name], include) is None:
        return "not included"
    if type(layer) is not nn.Conv2d or not name:
        return "it is a subclass of nn.Conv2d, or the model itself"
    if height != width or height % 2 == 0:
        return f"its kernel is {height}x{width}, not square and odd"
    if layer.dilation != (1, 1) or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return "it is dilated, or padded other than by numbers of zeros"
    return make.refusal(layer)


def _shrink(
    model: nn.Module,
    teacher: nn.Module,
    name: str,
    make: type[Method],
    data: Calibration,
    max_error: float | None,
    rows: list[ShrinkRow],
) -> str | None:
    """Fits one layer and puts the replacement in its place, or says why not."""
    old: Any = model.get_submodule(name)
    method = make(old)
    for fit in method.stages():
        for batch in _pairs(model, teacher, name, data):
            fit(*batch)
    new = method.finish()
    total = reference = 0.0
    for x, wanted in _pairs(model, teacher, name, data):
        with torch.no_grad():
            total += float((new(x).double() - wanted.double()).square().sum())
        reference += float(wanted.double().square().sum())
    error = (total / reference) ** 0.5 if reference else 0.0
    if max_error is not None and not error <= max_error:
        return f"the relative error of its outputs would be {error:.3f}"
    structure.replace_module(model, name, new)
    height, width = old.kernel_size
    weights = [sum(p.numel() for p in module.parameters()) for module in (old, new)]
    rows.append(ShrinkRow(name, f"{height}x{width}", method.label, error, *weights))
    return None


def _pairs(model: nn.Module, teacher: nn.Module, name: str, data: Calibration) -> Iterable[tuple[Tensor, Tensor]]:
    """For every batch, what the layer is given in ``model`` and what it makes in ``teacher``, [n, channels, h, w]."""
    for batch in data.batches:
        given = _seen(model, model.get_submodule(name), batch)
        made = _seen(teacher, teacher.get_submodule(name), batch)
        if len(given) != len(made) or not given:
            raise StructureError(f"{name} is not used on the calibration data")
        for (x, _), (_, y) in zip(given, made, strict=True):
            yield x, y


def _seen(model: nn.Module, layer: nn.Module, batch: Any) -> list[tuple[Tensor, Tensor]]:
    found: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, x: Tensor, y: Tensor) -> None:
        found.append((x if x.dim() == 4 else x[None], y if y.dim() == 4 else y[None]))

    with observe.watching([layer], note):
        _run(model, batch)
    return found


def _run(model: nn.Module, batch: Any) -> None:
    try:
        with observe.quiet(model):
            observe.call(model, batch)
    except Exception as error:
        raise StructureError(f"the model failed on a batch: {type(error).__name__}: {error}") from error

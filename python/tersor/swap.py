"""Replacing layers in place by accelerated ones, and putting the float layers back."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tersor import modules
from tersor.block_conversion import BlockConversion
from tersor.blocks import Blocks, find_blocks
from tersor.errors import SwapError
from tersor.factorize.factored_linear import FactoredLinear
from tersor.lowrank_selection import FUSED, choose_factored, judge_factored
from tersor.nn import EncoderBlock, Int8Linear, PackedLayer, SparseInt8Linear, SparseLinear
from tersor.nn.coded import layer_from_codes
from tersor.nn.encoder_frame import float_module
from tersor.nn.packed_linear import PackedLinear
from tersor.report import LayerRow, Report, Totals
from tersor.selection import Choice, choose, convert, judge, require_any

SwapReport = Report


class KeptFloat:
    """Holds the float layer that a replacement stands for. Copies and pickles of it are empty."""

    def __init__(self, module: nn.Module | None = None) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptFloat:
        return KeptFloat()

    def __reduce__(self) -> tuple[type[KeptFloat], tuple[()]]:
        return KeptFloat, ()


def swap(
    model: nn.Module,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep_float: bool = True,
    untie: bool = False,
    ranges: Mapping[str, tuple[float, int]] | None = None,
    force: bool = False,
    progress: bool = True,
    blocks: bool = True,
) -> SwapReport:
    """Replace the linear layers of ``model`` by int8 ones, and whole encoder blocks by EncoderBlock, in place.

    Factored layers (tersor.factorize) become LowRankInt8Linear where that is measured faster than two float products.

    A layer is replaced where its int8 kernel is measured faster than the float layer on this host, judged over 1 to
    256 rows; the measurements are cached. Names, hooks, ``training`` and attributes of the layers stay; an instance
    that is registered twice stays one instance. Subclasses, layers whose owner reads their weight (such as
    ``nn.MultiheadAttention``), tied weights, other devices and other dtypes are kept, each with its reason.

    A transformer's encoder block of a known form, all of whose layers are swapped, becomes one layer where that is
    measured faster still. It gives zeros at positions of padding.

    Torch's fused ``nn.TransformerEncoderLayer`` path goes round the layers, so it is switched off where one of them
    is replaced. The encoder then returns values at padded positions, where the fused path returns zeros.

    Args:
        model: any module but a bare linear layer. Compile it after the swap, not before.
        include: shell wildcards on qualified names, such as ``"encoder.*"``; empty means every layer.
        exclude: shell wildcards of layers to keep.
        keep_float: keep the float layers for :func:`restore`. False frees each as soon as it is replaced, so that
            the peak is the model plus one packed layer.
        untie: replace layers with tied weights as well; each gets weights of its own.
        ranges: (scale, zero point) of the input of some layers by name; the others measure theirs per row.
        force: replace without measuring; the report says so.
        progress: a progress bar on a terminal.
        blocks: False leaves the layers of encoder blocks apart.

    Raises:
        SwapError: nothing was replaced (the message says why for each layer), an include pattern matches no module,
            or the model can't be changed in place. The model is then as it was.
    """
    check_model(model)
    if isinstance(model, modules.linear_types()):
        raise SwapError("the model is itself a linear layer: use tersor.nn.Int8Linear.from_float(model)")
    before = modules.memory_bytes(model)
    parameters = modules.parameter_count(model)
    choices, found = choose(model, include, exclude, untie)
    _set_ranges(choices, ranges or {})
    judge(choices, force=force, progress=progress)
    factored = choose_factored(model, include, exclude, quantised=True)
    judge_factored(factored, force=force, progress=progress)
    choices += factored
    require_any(choices)
    whole = BlockConversion(find_blocks(model, choices) if blocks else Blocks(), force=force, progress=progress)
    rows: dict[int, LayerRow] = {}
    built: dict[nn.Module, nn.Module] = {}  # float module -> what takes its place

    def replace(choice: Choice) -> None:
        old, new = choice.candidate.module, replacement(choice)
        rows[id(choice)] = layer_row(choice, new)
        built[old] = new
        if (made := whole.assembled(choice, built)) is not None:
            block, new = made
            for member in block.swapped.values():
                del built[member.candidate.module]
            built[block.module] = new
        for old in [] if keep_float else [old for old in built if not whole.waits(old)]:
            new = built.pop(old)
            _install(model, old, new)
            whole.release(choices, old, new)

    try:
        convert(choices, replace, progress)
        for old, new in built.items():
            if keep_float:
                new.__dict__["_tersor_float"] = KeptFloat(old)
            _install(model, old, new)
    finally:
        modules.sync_fast_paths(model)
    require_any(choices)
    final = whole.ordered(
        choices, lambda choice: rows[id(choice)] if choice.reason is None else layer_row(choice, None)
    )
    report = make_report(model, list(final.values()), found, parameters, before)
    return dataclasses.replace(report, notes=(*report.notes, *whole.notes()))


def restore(model: nn.Module) -> int:
    """Put float layers back in place of the accelerated ones.

    A layer that was swapped with ``keep_float=True`` gets the very module back that was there, and its exact outputs
    with it. Where that module is gone (``keep_float=False``, a copy, a loaded model) or no longer stands for the
    weights, which were loaded anew, it becomes an ``nn.Linear`` with the dequantised weights.

    Returns:
        The number of layers put back.

    Raises:
        SwapError: the model holds no accelerated layer, or is itself one (use its ``to_float()``).
    """
    check_model(model)
    if isinstance(model, modules.accelerated_types()):
        raise SwapError("the model is itself an accelerated layer: use its to_float()")
    accelerated = [module for module in model.modules() if isinstance(module, modules.accelerated_types())]
    if not accelerated:
        raise SwapError("nothing to restore: the model holds no accelerated layer")
    pairs = [(module, _float_of(module)) for module in accelerated]
    for module, old in pairs:
        modules.replace(model, module, old)
    modules.sync_fast_paths(model)
    return len(pairs)


def _float_of(module: nn.Module) -> nn.Module:
    assert isinstance(module, PackedLayer)
    kept = module.__dict__.get("_tersor_float")
    old = kept.module if isinstance(kept, KeptFloat) else None
    if old is not None and _stands_for(module, old):
        for part, one in zip(old.modules(), module.modules(), strict=True):
            part.training = one.training
        return old.to(module.dtype)
    activation = module.config()["activation"]
    if isinstance(module, PackedLinear) and activation != "none":
        raise SwapError(f"can't restore a layer with a fused activation ({activation}): {module}")
    made = float_module(module, hooks=True) if isinstance(module, EncoderBlock) else module.to_float()
    own = {*type(module).from_config(module.config()).__dict__, "_tersor_name", "_tersor_float", *module._transient}
    modules.take_over(module, made, skip=own)
    return made


def _stands_for(module: PackedLayer, old: nn.Module) -> bool:
    own = module.canonical_tensors()
    settings = {"input_scale": own["input_scale"]} if "input_scale" in own else {}
    if isinstance(module, EncoderBlock):
        settings = module.conversion
    try:
        again = type(module).from_float(old, **settings).to(module.dtype).canonical_tensors()
    except ValueError:
        return False
    return own.keys() == again.keys() and all(torch.equal(own[key], again[key]) for key in own)


def replacement(choice: Choice) -> nn.Module:
    """The accelerated layer for a choice, without the old layer's hooks and attributes.

    Raises:
        ValueError: the layer can't be packed.
    """
    old = choice.candidate.module
    ranges: dict[str, Any] = {
        "x_scale": choice.x_scale,
        "x_zero_point": choice.x_zero_point,
        "input_scale": choice.input_scale,
    }
    new: PackedLinear
    if choice.codes is not None:
        new = layer_from_codes(old, choice.codes, bias=choice.bias, **ranges)
    elif choice.kind in FUSED:
        new = FUSED[choice.kind].from_float(old)
    elif choice.kind == "sparse":
        new = SparseLinear.from_float(old, pattern=choice.pattern)
    elif choice.kind == "sparse_int8":
        new = SparseInt8Linear.from_float(old, **ranges, pattern=choice.pattern)
    else:
        new = Int8Linear.from_float(old, **ranges)
    new._tersor_name = choice.candidate.names[0]
    return new


def _install(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    modules.take_over(old, new)
    modules.replace(model, old, new)


def check_model(model: object) -> None:
    """Check that ``model`` can be changed.

    Raises:
        SwapError: it is not a module, is scripted, or is compiled already.
    """
    if not isinstance(model, nn.Module):
        raise SwapError(f"expected an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise SwapError("a ScriptModule can't be changed: swap the Python model, then script or export it")
    if hasattr(model, "_orig_mod"):
        raise SwapError("this model is compiled already: swap first, then call torch.compile")


def _set_ranges(choices: Iterable[Choice], ranges: Mapping[str, tuple[float, int]]) -> None:
    left = dict(ranges)
    for choice in choices:
        for name in choice.candidate.names:
            if name in left:
                choice.x_scale, choice.x_zero_point = left.pop(name)
    if left:
        raise SwapError(f"ranges: no linear layer is called {', '.join(left)}")


def layer_row(choice: Choice, new: nn.Module | None) -> LayerRow:
    """The row of a choice; ``new`` is its replacement, None where it is kept."""
    candidate, verdict = choice.candidate, choice.verdict
    size = modules.memory_bytes(candidate.module)
    reason = choice.reason or (verdict.reason if verdict else "swapped without a measurement (force=True)")
    return LayerRow(
        name=candidate.name,
        kind=type(candidate.module).__name__,
        action="kept" if new is None else "swapped",
        reason=reason,
        shape=_extents(candidate.module),
        bytes_before=size,
        bytes_after=size if new is None else modules.memory_bytes(new),
        aliases=candidate.names[1:],
        rows=choice.rows if verdict else (),
        float_us=dict(verdict.float_us) if verdict else {},
        tersor_us=dict(verdict.tersor_us) if verdict else {},
        forced=choice.forced and new is not None,
        layer=None if new is None else type(new).__name__,
        pattern=choice.pattern,
        sparsity=choice.sparsity,
        form=getattr(new, "form", None),
        remark=choice.remark,
    )


def _extents(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.Linear | FactoredLinear):
        return module.out_features, module.in_features
    weight = module._parameters.get("weight")
    return None if weight is None or weight.dim() != 2 else (weight.shape[1], weight.shape[0])


def make_report(
    model: nn.Module, rows: Sequence[LayerRow], found: Sequence[str], parameters: int, before: int
) -> Report:
    """Assemble the report of a model that was just changed; also emits ``found`` as Python warnings."""
    for text in found:
        warnings.warn(text, stacklevel=3)
    off = modules.sync_fast_paths(model)
    notes = (
        [f"torch's fused encoder path is off in {', '.join(off)}; padded positions are not zeroed without it"]
        if off
        else []
    )
    swapped = sum(row.layers for row in rows if row.action == "swapped")
    kept = sum(row.layers for row in rows if row.action == "kept")
    totals = Totals(parameters, before, modules.memory_bytes(model), swapped, kept)
    return Report(tuple(rows), totals, tuple(found), tuple(notes), host())


def host() -> dict[str, str]:
    """What measured times depend on."""
    from tersor import kernels

    return {"threads": str(torch.get_num_threads()), "isa": kernels.active(), "torch": torch.__version__}

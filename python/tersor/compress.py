"""Running a recipe over a model."""

from __future__ import annotations

import copy
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from torch import Tensor, nn

from tersor import deviation, modules, observe
from tersor.conversion import Conversion, convert_linear
from tersor.convolutions import convert_convolutions
from tersor.errors import RecipeError, SwapError
from tersor.module_conversion import convert_embeddings, convert_recurrent
from tersor.pipeline import Run
from tersor.qat_conversion import convert_trained
from tersor.quantize.diagnosis import can_judge, suggestions
from tersor.recipe import Recipe
from tersor.report import LayerRow, Report
from tersor.selection import why_none
from tersor.stepping import apply_edits, final_row
from tersor.steps import Prune, Quantize
from tersor.swap import check_model, make_report
from tersor.work import WorkFolder

LARGE_ERROR = 0.05
"""Relative error of a layer above which the report suggests what to do."""
SUGGESTIONS = 8
"""For how many layers it tries out what would help."""

STAGES: tuple[Callable[[Conversion], None], ...] = (
    convert_convolutions,
    convert_linear,
    convert_trained,
    convert_recurrent,
    convert_embeddings,
)
"""What looks for layers to replace when the steps of the recipe that edit the model are done."""

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class CompressionResult(Generic[ModelT]):
    """What :func:`compress` made.

    Attributes:
        model: a compressed copy of the float model.
        report: what was done to each layer.
    """

    model: ModelT
    report: Report


def compress(
    model: ModelT,
    recipe: Recipe,
    example_inputs: Any = None,
    calibration: Iterable[Any] | None = None,
    train: Iterable[Any] | None = None,
    *,
    other_inputs: Iterable[Any] = (),
    untie: bool = False,
    force: bool = False,
    progress: bool = True,
    evaluate: Callable[[nn.Module], float] | None = None,
    work: str | os.PathLike[str] | None = None,
) -> CompressionResult[ModelT]:
    """Apply a recipe to a copy of ``model``; the float model is not touched.

    A layer is compressed where its kernel is measured faster than the float layer on this host, for the numbers of
    rows that ``example_inputs`` and ``other_inputs`` bring to it; elsewhere it stays float and the report says why.
    The model is run in eval mode without gradients; its training flags, buffers and torch's random state are put
    back. The same inputs on the same host give the same weights.

    Peak memory: the float model, the compressed one, a few megabytes of the layer being converted, and up to 66 rows
    of each layer's input; the float weights of compressed layers are never copied. A prune step works on a copy of the
    float model, and takes what its criterion and training take.

    Args:
        model: the float model, on the CPU; a bare ``nn.Linear`` works too.
        recipe: the steps and the layers they apply to.
        example_inputs: what the model is usually given: a tensor, a tuple or list of positional arguments, or a
            mapping of keyword arguments. Without it layers are judged for 1 to 256 rows, and no errors are measured.
        calibration: batches like ``example_inputs``, for ``activations="static"`` (all of them), for smoothing (the
            first 64 suffice) and for steps that look at inputs; without it, the latter two look at the example
            inputs. They are not kept.
        train: batches to train on, with a length, for steps that train.
        other_inputs: further inputs of other sizes; layers are judged for the numbers of rows of all of them.
        untie: compress layers with tied weights as well; each gets weights of its own.
        force: compress without measuring speed; the report says so.
        progress: progress bars on a terminal.
        evaluate: a metric, higher is better: ``evaluate(model)``. The report shows it after every step, and a distill
            step with ``patience`` stops by it.
        work: a folder that keeps what finished steps made and where a training stands. The same call with the same
            folder goes on after an interruption and ends as if there had been none.

    Raises:
        RecipeError: the recipe can't be applied as given, or in this order.
        PruneError: a prune step failed on its data.
        DistillError, TrainError: a step that trains can't work with these models or data.
        SwapError: no layer could be compressed (the message says why for each), the model failed on the inputs
            (its exception is chained), or it can't be copied.
    """
    check_model(model)
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"expected a Recipe, got {type(recipe).__name__}; write Recipe([steps.Quantize()])")
    recipe.check_order()
    edits = [step for step in recipe.steps if step.edits]
    inputs = [] if example_inputs is None else [example_inputs, *other_inputs]
    run = Run(
        model=_copy(model, {}, {}) if edits else model,
        teacher=model,
        include=recipe.include,
        exclude=recipe.exclude,
        inputs=inputs,
        calibration=calibration,
        train=train,
        untie=untie,
        force=force,
        progress=progress,
        evaluate=evaluate,
    )
    run.warnings += _unused(recipe, calibration, train)
    steps = apply_edits(run, edits, WorkFolder(None if work is None else Path(work), recipe, model))
    started = time.perf_counter()
    conversion = _convert(run, recipe)
    compressed = _copy(cast(ModelT, run.model), conversion.replacements, conversion.names)
    steps.append(final_row(compressed, conversion, time.perf_counter() - started, steps[-1]))
    before = modules.memory_bytes(model)
    report = make_report(
        compressed, list(conversion.rows.values()), run.warnings, modules.parameter_count(model), before
    )
    report = dataclasses.replace(report, notes=(*report.notes, *run.notes), steps=tuple(steps))
    if example_inputs is not None:
        report = _with_errors(report, conversion, compressed, example_inputs)
    return CompressionResult(compressed, report)


def _convert(run: Run, recipe: Recipe) -> Conversion:
    quantize = next((step for step in recipe.steps if isinstance(step, Quantize)), None)
    pruned = [step.pattern for step in recipe.steps if isinstance(step, Prune)]
    conversion = Conversion(run, quantize, pruned[-1] if pruned else None)
    for stage in STAGES:
        stage(conversion)
    if (
        not conversion.replacements
        and not conversion.graphs
        and not any(step.edits and step.lasting for step in recipe.steps)
    ):
        raise SwapError(why_none(conversion.choices))
    return conversion


def _unused(recipe: Recipe, calibration: object, train: object) -> list[str]:
    warnings = []
    used = frozenset().union(*(step.uses() for step in recipe.steps))
    if calibration is not None and "calibration" not in used:
        quantises = any(isinstance(step, Quantize) for step in recipe.steps)
        what = (
            "dynamic activation ranges without smoothing need none" if quantises else "no step of this recipe needs any"
        )
        warnings.append(f"calibration data was given, but {what}")
    if train is not None and "train" not in used:
        warnings.append("train data was given, but no step of this recipe trains")
    return warnings


def _copy(model: ModelT, replacements: dict[nn.Module, nn.Module], names: Mapping[nn.Module, Sequence[str]]) -> ModelT:
    """A deep copy of ``model`` in which the replacements stand for their float layers, which are not copied."""
    memo: dict[int, Any] = {id(old): new for old, new in replacements.items()}
    for module in model.modules():
        for value in module.__dict__.values():
            # weight_norm and its like leave results of autograd on the module; those can't be deep-copied.
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        for old, new in replacements.items():
            modules.take_over(old, new, duplicate=lambda value: copy.deepcopy(value, memo))
        compressed = copy.deepcopy(model, memo)
    except Exception as error:
        raise SwapError(
            f"the model can't be deep-copied ({type(error).__name__}: {error}); "
            "tersor.swap(model) changes it in place instead"
        ) from error
    for old, new in replacements.items():
        for name in names[old]:
            placed = compressed.get_submodule(name)
            if placed is not new:  # a __deepcopy__ of the model's own went past the memo
                modules.replace(compressed, placed, new)
    return compressed


def _with_errors(report: Report, conversion: Conversion, compressed: nn.Module, example_inputs: Any) -> Report:
    run, replacements = conversion.run, conversion.replacements
    errors, expected = deviation.layer_errors(run.model, replacements, example_inputs)
    if run.teacher is not run.model:
        expected = observe.run(run.teacher, example_inputs, "example_inputs")
    output = observe.run(compressed, example_inputs, "example_inputs")
    total = deviation.output_error(output, expected, replacements.values())
    rows = [_with_error(row, errors.get(id(old))) for row, old in zip(report.rows, conversion.rows, strict=True)]
    rows = _advised(rows, conversion, example_inputs)
    totals = report.totals
    if total is not None:
        totals = dataclasses.replace(totals, output_error=total[0], output_cosine=total[1])
    return dataclasses.replace(report, rows=tuple(rows), totals=totals)


def _advised(rows: list[LayerRow], conversion: Conversion, example_inputs: Any) -> list[LayerRow]:
    """What would help the layers that lose most."""
    layers = {row.name: old for row, old in zip(rows, conversion.rows, strict=True)}
    worst = sorted((row for row in rows if row.suggestion is not None), key=lambda row: -(row.rel_error or 0.0))
    pairs = {row.name: (layers[row.name], conversion.replacements[layers[row.name]]) for row in worst[:SUGGESTIONS]}
    pairs = {name: pair for name, pair in pairs.items() if can_judge(*pair)}
    advice = suggestions(conversion.run.model, pairs, example_inputs) if pairs else {}
    return [dataclasses.replace(row, suggestion=advice.get(row.name, row.suggestion)) for row in rows]


def _with_error(row: LayerRow, error: float | None) -> LayerRow:
    if error is None:
        return row
    name = f"{row.name}.*" if row.parts else row.name
    keep = f'Keep it float with exclude = ["{name}"].' if error > LARGE_ERROR else None
    return dataclasses.replace(row, rel_error=error, suggestion=keep)

"""Running a recipe over a model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from tersor import modules, observe
from tersor.calibrate import fit, look_at_inputs, smoothing_note
from tersor.errors import RecipeError, SwapError
from tersor.prune import CRITERIA, PruneResult
from tersor.pruning import prune_model
from tersor.recipe import Recipe
from tersor.report import LayerRow, Report
from tersor.selection import Choice, choose, convert, judge, open_choices, require_any
from tersor.sparse_selection import judge_pruned
from tersor.steps import Prune, Quantize
from tersor.swap import check_model, layer_row, make_report, replacement

LARGE_ERROR = 0.05
"""Relative error of a layer above which the report suggests what to do."""

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
            first 64 suffice) and for pruning criteria that look at inputs; without it, the latter two look at the
            example inputs. They are not kept.
        train: batches to train on, with a length, for a prune step.
        other_inputs: further inputs of other sizes; layers are judged for the numbers of rows of all of them.
        untie: compress layers with tied weights as well; each gets weights of its own.
        force: compress without measuring speed; the report says so.
        progress: progress bars on a terminal.

    Raises:
        RecipeError: the recipe can't be applied as given.
        PruneError: the prune step failed on its data.
        SwapError: no layer could be compressed (the message says why for each), the model failed on the inputs
            (its exception is chained), or it can't be copied.
    """
    check_model(model)
    prune, quantize = _split(recipe)
    step = quantize or Quantize(smooth=0)
    before = modules.memory_bytes(model)
    inputs = [] if example_inputs is None else [example_inputs, *other_inputs]
    work = model if prune is None else _copy(model, (), {})
    choices, warnings = choose(work, recipe.include, recipe.exclude, untie)
    warnings += _unused(recipe, calibration, train)
    notes = []
    if prune is not None:
        require_any(choices)
        names = [choice.candidate.name for choice in open_choices(choices)]
        batches = calibration if calibration is not None or not inputs else inputs
        notes.append(_pruned_note(prune, prune_model(work, model, prune, names, batches, train, progress)))
    source = look_at_inputs(work, choices, step, inputs, calibration if quantize else None, progress)
    if prune is None:
        judge(choices, force=force, progress=progress)
    else:
        judge_pruned(choices, prune.pattern, quantised=quantize is not None, force=force, progress=progress)
    require_any(choices)
    replacements: dict[nn.Module, nn.Module] = {}

    def build(choice: Choice) -> None:
        fit(choice, step)
        replacements[choice.candidate.module] = replacement(choice)

    convert(choices, build, progress)
    require_any(choices)
    compressed = _copy(work, choices, replacements)
    rows = [layer_row(choice, replacements.get(choice.candidate.module)) for choice in choices]
    report = make_report(compressed, rows, warnings, modules.parameter_count(model), before)
    if (note := smoothing_note(step, choices, source)) is not None:
        notes.append(note)
    report = dataclasses.replace(report, notes=(*report.notes, *notes))
    if example_inputs is not None:
        report = _with_errors(report, work, compressed, choices, replacements, example_inputs, model)
    return CompressionResult(compressed, report)


def _split(recipe: Recipe) -> tuple[Prune | None, Quantize | None]:
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"expected a Recipe, got {type(recipe).__name__}; write Recipe([steps.Quantize()])")
    prune = next((step for step in recipe.steps if isinstance(step, Prune)), None)
    quantize = next((step for step in recipe.steps if isinstance(step, Quantize)), None)
    if [step for step in (prune, quantize) if step is not None] != list(recipe.steps):
        names = [step.name for step in recipe.steps]
        raise RecipeError(f"a recipe is a prune step, a quantize step, or both in this order, got {names}")
    return prune, quantize


def _unused(recipe: Recipe, calibration: object, train: object) -> list[str]:
    warnings = []
    prune, step = _split(recipe)
    needed = step is not None and (step.activations == "static" or step.smooth > 0)
    needed = needed or (prune is not None and CRITERIA[prune.criterion].needs != "nothing")
    if calibration is not None and not needed:
        what = "dynamic activation ranges without smoothing need none" if step else "no step of this recipe needs any"
        warnings.append(f"calibration data was given, but {what}")
    if train is not None and prune is None:
        warnings.append("train data was given, but no step of this recipe trains")
    return warnings


def _pruned_note(step: Prune, result: PruneResult) -> str:
    trained = ""
    if result.losses:
        trained = f", trained for {len(result.losses)} steps, loss {result.losses[0]:.3g} to {result.losses[-1]:.3g}"
    return (
        f"pruned {len(result.layers)} layers by {step.criterion}, {step.pattern}: {result.sparsity:.1%} of their "
        f"weights are 0{trained}; errors of layers are against the pruned model, that of the output against the float "
        "model"
    )


def _copy(model: ModelT, choices: Sequence[Choice], replacements: dict[nn.Module, nn.Module]) -> ModelT:
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
    for choice in open_choices(choices):
        new = replacements[choice.candidate.module]
        for name in choice.candidate.names:
            placed = compressed.get_submodule(name)
            if placed is not new:  # a __deepcopy__ of the model's own went past the memo
                modules.replace(compressed, placed, new)
    return compressed


def _with_errors(
    report: Report,
    model: nn.Module,
    compressed: nn.Module,
    choices: Sequence[Choice],
    replacements: dict[nn.Module, nn.Module],
    example_inputs: Any,
    original: nn.Module,
) -> Report:
    errors, expected = observe.layer_errors(model, replacements, example_inputs)
    if original is not model:
        expected = observe.run(original, example_inputs, "example_inputs")
    total = observe.output_error(observe.run(compressed, example_inputs, "example_inputs"), expected)
    rows = [
        _with_error(row, choice, errors.get(id(choice.candidate.module)))
        for row, choice in zip(report.rows, choices, strict=True)
    ]
    totals = report.totals
    if total is not None:
        totals = dataclasses.replace(totals, output_error=total[0], output_cosine=total[1])
    return dataclasses.replace(report, rows=tuple(rows), totals=totals)


def _with_error(row: LayerRow, choice: Choice, error: float | None) -> LayerRow:
    if error is None or row.action == "kept":
        return row
    suggestion = None
    if error > LARGE_ERROR:
        suggestion = f'Keep it float with exclude = ["{row.name}"].'
        if choice.x_scale:
            suggestion = f'Use activations = "dynamic", or more calibration data. {suggestion}'
    return dataclasses.replace(row, rel_error=error, suggestion=suggestion)

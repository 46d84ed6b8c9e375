"""The weights of a quantize step that are more than rounded to int8: codes, corrections, bits per layer, ranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tersor import observe, processes
from tersor.calibrate import fit
from tersor.errors import RecipeError, SwapError
from tersor.nn.float_linear import weight_matrix
from tersor.progress import track
from tersor.quantize.batches import limited
from tersor.quantize.codebooks import make_codebook
from tersor.quantize.corrections import LayerProblem, Solved, solve
from tersor.quantize.mixed import choose_bits
from tersor.quantize.moments import InputMoments, input_moments, portions
from tersor.quantize.observers import Observer, make_observer, merged
from tersor.selection import Choice, convert, judge, open_choices
from tersor.tune import Verdict
from tersor.tune_codes import CodesTuner

if TYPE_CHECKING:
    from tersor.pipeline import Run
    from tersor.steps import Quantize


def solve_weights(run: Run, choices: Sequence[Choice], step: Quantize) -> bool:
    """Give the open choices their codes, bias, input scale and range, where the step asks for more than plain int8.

    Returns:
        Whether it does.

    Raises:
        RecipeError: corrections or an observer without data, or with data that can be looked at only once.
        SwapError: the model failed on its inputs, or the data are not usable.
    """
    observed = step.activations == "static" and step.observer != "minmax"
    if step.nearest_int8 and not observed:
        return False
    convert(choices, lambda choice: fit(choice, step), False)
    dense = [choice for choice in open_choices(choices) if choice.kind == "int8"]
    if not step.nearest_int8:
        if len(dense) < len(open_choices(choices)):
            run.warnings.append("layers that are sparse hold plain int8 weights, whatever the quantize step says")
        _solve(run, dense, step)
    if observed:
        _observe(run, open_choices(choices), step)
    return True


def judge_codes(choices: Sequence[Choice], step: Quantize, *, force: bool, progress: bool) -> None:
    """Measure every open choice as the layer that the step makes of it; see tersor.selection.judge."""
    if force or (step.bits == 8 and step.group_size is None):
        judge(choices, force=force, progress=progress)
        return
    tuner = CodesTuner()

    def measured(choice: Choice) -> Verdict:
        layer = choice.candidate.module
        return tuner.judge_codes(layer, choice.rows, choice.dtype, step.bits, step.group_size)

    judge(choices, force=False, progress=progress, measured=measured)


def _solve(run: Run, choices: Sequence[Choice], step: Quantize) -> None:
    book = make_codebook(step.codebook)
    if not step.corrections and step.average_bits is None:

        def build(choice: Choice) -> None:
            weight = _weight(choice)
            scaled = weight if choice.input_scale is None else weight / choice.input_scale
            choice.codes = book.fit(scaled, step.bits, step.group_size)

        convert(choices, build, run.progress)
        run.notes.append(f"weights: {_scheme(step)}")
        return
    bits = {choice.candidate.name: step.bits for choice in choices}
    if step.average_bits is not None:
        bits = _mixed_bits(run, choices, step)
    helped = dict.fromkeys(step.corrections, 0)
    for choice, moments in _with_moments(run, choices, step):
        problem = _problem(choice, moments, step, bits[choice.candidate.name])
        try:
            solved = solve(problem, step.corrections, choice.input_scale)
        except ValueError as error:
            choice.reason = f"can't be converted: {error}"
            continue
        _take(choice, solved, problem)
        for name in solved.helped:
            helped[name] += 1
    run.notes.append(_note(step, choices, helped, bits))


def _take(choice: Choice, solved: Solved, problem: LayerProblem) -> None:
    solution = solved.solution
    choice.codes, choice.bias, choice.input_scale = solution.codes, solution.bias, solution.input_scale
    choice.x_scale, choice.x_zero_point = problem.range_of(solution)
    steps = [f"{solved.plain:.3g} rounded to the nearest", *(f"{e:.3g} with {n}" for n, e in solved.errors.items())]
    choice.remark = f"{solution.codes.bits} bits; error {', '.join(steps)}"


def _problem(choice: Choice, moments: InputMoments, step: Quantize, bits: int) -> LayerProblem:
    channels = None if choice.seen is None else choice.seen.channels

    def x_range(input_scale: Tensor | None) -> tuple[float, int]:
        return (0.0, 0) if step.activations == "dynamic" or channels is None else channels.x_range(input_scale)

    return LayerProblem(_weight(choice), moments, make_codebook(step.codebook), bits, step.group_size, x_range)


def _mixed_bits(run: Run, choices: Sequence[Choice], step: Quantize) -> dict[str, int]:
    errors: dict[str, dict[int, float]] = {}
    sizes: dict[str, int] = {}
    assert step.average_bits is not None
    for choice, moments in _with_moments(run, choices, step):
        name = choice.candidate.name
        problems = {bits: _problem(choice, moments, step, bits) for bits in range(2, step.bits + 1)}
        errors[name] = {bits: one.error(one.fit(choice.input_scale)) ** 2 for bits, one in problems.items()}
        sizes[name] = weight_matrix(choice.candidate.module).numel()
    return choose_bits(errors, sizes, step.average_bits)


def _with_moments(run: Run, choices: Sequence[Choice], step: Quantize) -> Iterator[tuple[Choice, InputMoments]]:
    """The choices with the moments of their inputs; those that the data never reach are closed."""
    batches = _repeatable(run, step, "corrections and average_bits")
    pending = {choice.candidate.name: choice for choice in open_choices(choices)}
    channels = {name: weight_matrix(choice.candidate.module).shape[1] for name, choice in pending.items()}
    for names in portions(channels):
        layers: dict[str, nn.Module] = {name: pending[name].candidate.module for name in names}
        shown = track(limited(batches, step.samples), "looking at inputs", shown=run.progress)
        found = input_moments(run.model, layers, shown)
        for name in track(names, "correcting layers", shown=run.progress):
            if name in found:
                yield pending[name], found.pop(name)
            else:
                pending[name].reason = "never called on the calibration data"


def _repeatable(run: Run, step: Quantize, what: str) -> Iterable[Any]:
    batches = run.batches
    if batches is None:
        raise RecipeError(f"{what} need calibration data or example inputs: pass calibration=batches")
    if isinstance(batches, Iterator):
        raise RecipeError(f"{what} look at the calibration data more than once: pass a list or a DataLoader")
    return batches


def _observe(run: Run, choices: Sequence[Choice], step: Quantize) -> None:
    """Static ranges from the step's observer, on inputs as they are after scaling."""
    batches = _repeatable(run, step, f'smoothing and observer = "{step.observer}"')
    wanted = {id(choice.candidate.module): choice for choice in choices}
    observers: dict[int, Observer] = {key: make_observer(step.observer) for key in wanted}

    def note(layer: nn.Module, x: Tensor, _: Tensor) -> None:
        scale = wanted[id(layer)].input_scale
        try:
            observers[id(layer)].add(x if scale is None else x.to(torch.float32) * scale)
        except ValueError as error:
            raise SwapError(f"{wanted[id(layer)].candidate.name}: {error}") from error

    with observe.watching([choice.candidate.module for choice in choices], note):
        processes.share(
            track(limited(batches, step.samples), "observing", shown=run.progress),
            lambda index, batch: observe.run(run.model, batch, f"calibration batch {index}"),
        )
    for key, choice in wanted.items():
        scale, zero = merged(observers[key]).quantization()
        choice.x_scale, choice.x_zero_point = float(scale), int(zero)


def _weight(choice: Choice) -> Tensor:
    return weight_matrix(choice.candidate.module).to(torch.float32)


def _scheme(step: Quantize) -> str:
    groups = "per channel" if step.group_size is None else f"in groups of {step.group_size}"
    return f"{step.weights}, {step.codebook}, {groups}"


def _note(step: Quantize, choices: Sequence[Choice], helped: Mapping[str, int], bits: Mapping[str, int]) -> str:
    parts = [f"weights: {_scheme(step)}"]
    total = len(open_choices(choices))
    if step.average_bits is not None:
        counts = {count: list(bits.values()).count(count) for count in sorted(set(bits.values()))}
        parts.append("bits per layer: " + ", ".join(f"{count} in {number}" for count, number in counts.items()))
    if total > 0:
        parts += [f"{name} reduced the error of {count} of {total} layers" for name, count in helped.items()]
    return "; ".join(parts)

"""Which layers lose most by quantisation, whether by their weights or their inputs, and what would help."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tersor import observe
from tersor.errors import SwapError
from tersor.modules import accelerated_types, linear_types
from tersor.nn.float_linear import weight_matrix
from tersor.nn.packed_linear import PackedLinear
from tersor.progress import track
from tersor.quantize.batches import limited
from tersor.quantize.codebooks import decode, make_codebook
from tersor.quantize.corrections import LayerProblem, Solution, make_correction
from tersor.quantize.moments import InputMoments
from tersor.quantize.observers import make_observer
from tersor.quantize.row_sample import RowSample
from tersor.quantize.simulation import fake_quantize

SAMPLE_ROWS = 128
WORTH = 3.0
"""Decibels that a change of settings has to bring to be suggested."""


@dataclass(frozen=True)
class LayerDiagnosis:
    """One quantised linear layer against its float self, on the inputs that the float model gives it.

    Attributes:
        name: its qualified name.
        snr_db: ``10 log10(|y|^2 / |y' - y|^2)`` of its output; infinite where nothing is lost.
        weights_db: the same if only its weights were quantised, on a sample of rows.
        inputs_db: the same if only its inputs were, on the sample.
        suggestion: the setting that would bring most, with the ratio that it would have, or to keep it float.
    """

    name: str
    snr_db: float
    weights_db: float
    inputs_db: float
    suggestion: str


def diagnose(
    model: nn.Module,
    quantized: nn.Module,
    batches: Iterable[Any],
    *,
    samples: int | None = None,
    progress: bool = True,
) -> list[LayerDiagnosis]:
    """Compare every accelerated linear layer with the float layer of its name, the worst first.

    Args:
        model: the float model; it is run, and left as it was.
        quantized: what became of it.
        batches: inputs of the model.
        samples: stop after the batch with which this many examples were seen.

    Raises:
        SwapError: the models have no quantised layer in common, or the float model failed on a batch.
    """
    pairs: dict[str, tuple[nn.Module, nn.Module]] = {}
    floats = dict(model.named_modules())
    for name, module in quantized.named_modules():
        if name in floats and can_judge(floats[name], module):
            pairs[name] = floats[name], module
    if not pairs:
        raise SwapError("no linear layer of the float model is quantised in the other one")
    seen = _observe(model, pairs, track(limited(batches, samples), "comparing layers", shown=progress))
    shown = track(list(seen.items()), "suggestions", shown=progress)
    found = [_diagnosis(name, *pairs[name], what) for name, what in shown]
    return sorted(found, key=lambda one: one.snr_db)


def can_judge(old: nn.Module, new: nn.Module) -> bool:
    """Whether a float layer and its replacement are linear, and the latter has quantised weights and inputs."""
    return isinstance(old, linear_types()) and isinstance(new, PackedLinear) and "x_scale" in new.config()


def suggestions(model: nn.Module, pairs: Mapping[str, tuple[nn.Module, nn.Module]], inputs: Any) -> dict[str, str]:
    """What would help each of some layers most, judged on one input of the model.

    Args:
        pairs: name -> the float layer in the model and what replaces it.
    """
    return {name: suggestion(*pairs[name], seen[2], name) for name, seen in _observe(model, pairs, [inputs]).items()}


def suggestion(old: nn.Module, new: nn.Module, rows: Tensor, name: str) -> str:
    """What would help one layer most.

    Args:
        old, new: the float linear layer and what replaced it.
        rows: some of its inputs, ``[n, in]``.
        name: of the layer, for the advice to keep it float.
    """
    keep = f'Keep it float with exclude = ["{name}"].'
    x = rows.to(torch.float32)
    if not bool(torch.isfinite(x).all()):
        return keep
    now = _error(*_parts(old, new, x))
    reference = _energy(x @ _weight(old).t())
    tried = {what: _error(*parts) for what, parts in _alternatives(old, new, x)}
    if not tried:
        return keep
    best = min(tried, key=lambda what: tried[what])
    if tried[best] * 10 ** (WORTH / 10) > now:
        return f"No other range, smoothing or group size brings {WORTH:g} dB. {keep}"
    return f"{best} brings {_decibel(reference, tried[best]):.1f} dB instead of {_decibel(reference, now):.1f}. {keep}"


_Seen = tuple[float, float, Tensor]


def _observe(
    model: nn.Module, pairs: Mapping[str, tuple[nn.Module, nn.Module]], batches: Iterable[Any]
) -> dict[str, _Seen]:
    """By layer: squared output, squared error, and a sample of input rows."""
    names = {id(old): name for name, (old, _) in pairs.items()}
    energy: dict[str, list[float]] = {}
    rows: dict[str, RowSample] = {}

    def compare(layer: nn.Module, x: Tensor, y: Tensor) -> None:
        name = names[id(layer)]
        sums = energy.setdefault(name, [0.0, 0.0])
        sums[0] += _energy(y)
        sums[1] += _energy(pairs[name][1](x) - y)
        rows.setdefault(name, RowSample(x.shape[-1], torch.float32, SAMPLE_ROWS)).add(x)

    count = 0
    with observe.watching([old for old, _ in pairs.values()], compare):
        for batch in batches:
            observe.run(model, batch, f"batch {count}")
            count += 1
    if not energy:
        raise SwapError("the batches reach no quantised layer" if count else "there was no batch")
    return {name: (sums[0], sums[1], rows[name].rows) for name, sums in energy.items()}


def _diagnosis(name: str, old: nn.Module, new: nn.Module, seen: _Seen) -> LayerDiagnosis:
    signal, noise, rows = seen
    weights, inputs = _parts(old, new, rows)
    reference = _energy(rows @ _weight(old).t())
    return LayerDiagnosis(
        name,
        _decibel(signal, noise),
        _decibel(reference, _energy(weights)),
        _decibel(reference, _energy(inputs)),
        suggestion(old, new, rows, name),
    )


def _parts(old: nn.Module, new: nn.Module, x: Tensor, **changed: Any) -> tuple[Tensor, Tensor]:
    """What the weight and what the quantised input add to the output, ``[n, out]`` each.

    ``changed`` stands for a property of the layer: its weight (times the input scale), static range or input scale.
    """
    scale = changed.get("scale", input_scale(new))
    fitted: Tensor = changed.get("weight", _weight(new))
    x_range = changed.get("x_range", (getattr(new, "x_scale", 0.0), getattr(new, "x_zero_point", 0)))
    scaled = x if scale is None else x * scale
    noise = fake_quantize(scaled, *x_range) - scaled
    noise = noise if scale is None else noise / scale
    return x @ (fitted - _weight(old)).t(), noise @ fitted.t()


def _alternatives(old: nn.Module, new: nn.Module, x: Tensor) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    scale = input_scale(new)
    scaled = x if scale is None else x * scale
    if getattr(new, "x_scale", 0.0) > 0:
        yield 'activations = "dynamic"', _parts(old, new, x, x_range=(0.0, 0))
        for name in ("percentile", "mse"):
            observer = make_observer(name)
            observer.add(scaled)
            step, zero = observer.quantization()
            yield f'observer = "{name}"', _parts(old, new, x, x_range=(float(step), int(zero)))
    bits, weight = int(getattr(new, "bits", 8)), _weight(old)
    solution, x_range = _smoothed(new, weight, x)
    if solution.input_scale is not None:
        fitted = decode(solution.codes) * solution.input_scale
        changed = {"weight": fitted, "x_range": x_range, "scale": solution.input_scale}
        yield 'corrections = ["smoothing"]', _parts(old, new, x, **changed)
    target = weight if scale is None else weight / scale
    for size in (64, 32):
        if size < min(weight.shape[1], int(getattr(new, "group_size", None) or weight.shape[1])):
            fitted = decode(make_codebook("linear").fit(target, bits, size, scaled.square().mean(0)))
            fitted = fitted if scale is None else fitted * scale
            yield f"group_size = {size}", _parts(old, new, x, weight=fitted)


def _smoothed(new: nn.Module, weight: Tensor, x: Tensor) -> tuple[Solution, tuple[float, int]]:
    """What the correction by that name would make of a layer, and the static range it would have."""
    moments = InputMoments(x.shape[1])
    moments.add(x)
    bits, size = int(getattr(new, "bits", 8)), getattr(new, "group_size", None) or None
    problem = LayerProblem(weight, moments, make_codebook("linear"), bits, size)
    if getattr(new, "x_scale", 0.0) > 0:
        problem = replace(problem, x_range=moments.channels.x_range)
    solution = make_correction("smoothing").apply(problem, problem.fit())
    return solution, problem.range_of(solution)


def input_scale(layer: nn.Module) -> Tensor | None:
    """What an accelerated layer multiplies its input by, float32 ``[in]``, or None."""
    if not getattr(layer, "smoothed", False):
        return None
    tensors: dict[str, Tensor] = layer.canonical_tensors()  # type: ignore[operator]
    return tensors.get("input_scale")


def _weight(layer: nn.Module) -> Tensor:
    if isinstance(layer, accelerated_types()):
        layer = layer.to_float()  # type: ignore[operator]
    return weight_matrix(layer).detach().to(torch.float32)


def _error(weights: Tensor, inputs: Tensor) -> float:
    return _energy(weights + inputs)


def _energy(tensor: Tensor) -> float:
    return float(tensor.detach().to(torch.float32).square().sum(dtype=torch.float64))


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf

"""What a model costs: parameters, memory, operations, time and energy of one call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tersor import modules, observe
from tersor.benchmark import interleave
from tersor.energy import EnergyMeter
from tersor.errors import SwapError
from tersor.modules import accelerated_types
from tersor.report import StepRow

_ROUNDS = 9
_SECONDS = 0.5


def step_row(
    name: str,
    model: nn.Module,
    teacher: nn.Module,
    inputs: Any,
    evaluate: Callable[[nn.Module], float] | None,
    *,
    seconds: float | None,
    timed: bool,
    counted: nn.Module | None = None,
    skipped: Mapping[nn.Module, float] | None = None,
) -> StepRow:
    """The row of the report for a step after which ``model`` was like this.

    Args:
        teacher: the float model, timed in turns with it.
        inputs: of one call; None: neither operations nor times are told.
        seconds: that the step took.
        timed: whether times are measured.
        counted: the float model whose parameters and operations count, where those of ``model`` are packed.
        skipped: layer of ``counted`` -> the part of its operations that is not done any more.
    """
    shown = counted if counted is not None else model
    flops = None if inputs is None else operations(shown, inputs, skipped or {})
    ms = float_ms = joules = None
    if timed and inputs is not None:
        float_ms, ms, joules = _time(teacher, model, inputs)
    metric = None
    if evaluate is not None:
        with observe.quiet(model):
            metric = float(evaluate(model))
    return StepRow(
        name=name,
        parameters=modules.parameter_count(shown),
        nonzeros=_nonzeros(shown),
        bytes=modules.memory_bytes(model),
        flops=flops,
        ms=ms,
        float_ms=float_ms,
        joules=joules,
        metric=metric,
        seconds=seconds,
    )


def operations(model: nn.Module, inputs: Any, skipped: Mapping[nn.Module, float] = {}) -> int | None:
    """Floating-point operations (two for each multiplication with its addition) of one call.

    Products of matrices, convolutions and attention are counted; a low-rank or sparse layer of tersor for what it does.
    None where the model does not bear torch's counter.
    """
    extra = 0.0

    def note(layer: nn.Module, x: Tensor, y: Tensor) -> None:
        nonlocal extra
        if isinstance(layer, accelerated_types()):
            extra += _of_packed(layer, x, y)
        if layer in skipped:
            extra -= skipped[layer] * _of_linear(layer, x)

    watched = [module for module in model.modules() if isinstance(module, accelerated_types()) or module in skipped]
    try:
        with observe.watching(watched, note), FlopCounterMode(display=False) as counter:
            observe.run(model, inputs, "example_inputs")
    except SwapError:  # the model runs on these inputs, but not under torch's counter
        return None
    return int(counter.get_total_flops()) + round(extra)


def _of_linear(layer: nn.Module, x: Tensor) -> float:
    weight = getattr(layer, "weight", None)
    return 2.0 * (x.numel() // max(x.shape[-1], 1)) * weight.numel() if isinstance(weight, Tensor) else 0.0


def _of_packed(layer: Any, x: Tensor, y: Tensor) -> float:
    if hasattr(layer, "in_channels"):
        kernel = layer.in_channels // layer.groups
        for size in layer.kernel_size:
            kernel *= size
        return 2.0 * float(y.numel() * kernel)
    if hasattr(layer, "operations"):
        return float(layer.operations(x.shape[0], x.shape[1]))
    if not hasattr(layer, "in_features"):
        return 0.0
    rows, wide, tall = x.numel() // max(x.shape[-1], 1), layer.in_features, layer.out_features
    rank = getattr(layer, "rank", None)
    each = rank * (wide + tall) if isinstance(rank, int) else wide * tall * getattr(layer, "density", 1.0)
    return 2.0 * rows * float(each)


def _nonzeros(model: nn.Module) -> int:
    return sum(int(tensor.count_nonzero()) for tensor in modules.tensors(model) if isinstance(tensor, nn.Parameter))


def _time(teacher: nn.Module, model: nn.Module, inputs: Any) -> tuple[float, float, float | None]:
    """Milliseconds of both, and joules of the latter; None where the host can't tell."""
    with contextlib.ExitStack() as stack:
        for one in (teacher, model):
            stack.enter_context(observe.quiet(one))
        runs = {"float": lambda: observe.call(teacher, inputs), "model": lambda: observe.call(model, inputs)}
        laps = interleave(runs, rounds=_ROUNDS, warmup=1, turn_seconds=0.002, seconds=_SECONDS, meter=EnergyMeter())
    joules = laps["model"].joules
    energy = None if joules is None else joules / laps["model"].calls
    return laps["float"].median * 1e3, laps["model"].median * 1e3, energy

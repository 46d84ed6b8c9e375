"""What a model costs: parameters, memory, operations, time and energy of one call."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tersor import modules, observe
from tersor.benchmark import interleave
from tersor.energy import EnergyMeter, gpu_of
from tersor.errors import SwapError
from tersor.modules import accelerated_types
from tersor.report import StepRow


@dataclasses.dataclass(frozen=True)
class Costs:
    """Parameters, those of them that are not zero, and floating-point operations of one call (None: not known)."""

    parameters: int
    nonzeros: int
    flops: int | None


def count(model: nn.Module, inputs: Any, unread: Mapping[nn.Module, int] = {}) -> Costs:
    """What a model of float layers costs on some inputs (None for none); see :func:`operations`."""
    flops = None if inputs is None else operations(model, inputs, unread)
    return Costs(modules.parameter_count(model), _nonzeros(model), flops)


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
    costs: Costs | None = None,
) -> StepRow:
    """The row of the report for a step after which ``model`` was like this.

    Args:
        teacher: the float model, timed in turns with it.
        inputs: of one call; None: neither operations nor times are told.
        seconds: that the step took.
        timed: whether times are measured.
        costs: where those of ``model`` can't be counted, because its layers are packed.
    """
    costs = costs or count(model, inputs)
    ms = float_ms = joules = float_joules = None
    if timed and inputs is not None:
        (float_ms, float_joules), (ms, joules) = _time(teacher, model, inputs)
    metric = None
    if evaluate is not None:
        with observe.quiet(model):
            metric = float(evaluate(model))
    return StepRow(
        name=name,
        parameters=costs.parameters,
        nonzeros=costs.nonzeros,
        bytes=modules.memory_bytes(model),
        flops=costs.flops,
        ms=ms,
        float_ms=float_ms,
        joules=joules,
        metric=metric,
        seconds=seconds,
        float_joules=float_joules,
    )


def operations(model: nn.Module, inputs: Any, unread: Mapping[nn.Module, int] = {}) -> int | None:
    """Floating-point operations (two for each multiplication with its addition) of one call.

    Products of matrices, convolutions and attention are counted; a low-rank or sparse layer of tersor for what it does.
    None where the model does not bear torch's counter.

    Args:
        unread: layer -> how many of its weights no row of its input is multiplied by any more.
    """
    extra = 0.0

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal extra
        x = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(x, Tensor):
            if isinstance(layer, accelerated_types()) and isinstance(output, Tensor):
                extra += _of_packed(layer, x, output)
            extra -= 2.0 * unread.get(layer, 0) * (x.numel() // max(x.shape[-1], 1))

    watched = [module for module in model.modules() if isinstance(module, accelerated_types()) or module in unread]
    try:
        with observe.watching_calls(watched, note), FlopCounterMode(display=False) as counter:
            observe.run(model, inputs, "example_inputs")
    except SwapError:  # the model runs on these inputs, but not under torch's counter
        return None
    return int(counter.get_total_flops()) + round(extra)


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


def _time(teacher: nn.Module, model: nn.Module, inputs: Any) -> tuple[tuple[float, float | None], ...]:
    """Milliseconds and joules (None where the host can't tell) of a call of each."""
    with contextlib.ExitStack() as stack:
        for one in (teacher, model):
            stack.enter_context(observe.quiet(one))
        meter = EnergyMeter(gpu=gpu_of(model, inputs))
        runs = {"float": lambda: observe.call(teacher, inputs), "model": lambda: observe.call(model, inputs)}
        laps = interleave(runs, rounds=_ROUNDS, warmup=1, turn_seconds=0.002, seconds=_SECONDS, meter=meter)
    return tuple((lap.median * 1e3, None if lap.joules is None else lap.joules / lap.calls) for lap in laps.values())

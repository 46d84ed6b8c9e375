"""Replacing the recurrent layers of a model, and its embeddings where that is asked for, after the steps of a recipe.

They are measured as linear layers are (tersor.tune), on what the example inputs bring to them first, else on one
sequence of 16 steps and on 64 rows of a table. A table saves memory, and need not be faster than float, only as fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tersor import modules, observe
from tersor.benchmark import torch_threads
from tersor.conversion import Conversion
from tersor.modules import Candidate
from tersor.nn import (
    Int8Embedding,
    Int8EmbeddingBag,
    Int8GRU,
    Int8GRUCell,
    Int8LSTM,
    Int8LSTMCell,
    PackedLayer,
)
from tersor.selection import Choice
from tersor.swap import layer_row
from tersor.tune import MARGIN, decide, race

RECURRENT: Mapping[type[nn.Module], Any] = {
    nn.GRU: Int8GRU,
    nn.LSTM: Int8LSTM,
    nn.GRUCell: Int8GRUCell,
    nn.LSTMCell: Int8LSTMCell,
}
TABLES: Mapping[type[nn.Module], Any] = {nn.Embedding: Int8Embedding, nn.EmbeddingBag: Int8EmbeddingBag}

_STEPS, _LOOKUPS = 16, 64


def convert_recurrent(conversion: Conversion) -> None:
    """Replace GRUs, LSTMs and their cells by int8 ones where a step quantises."""
    if conversion.quantize is not None:
        _convert(conversion, RECURRENT, lambda kind, module: kind.from_float(module))


def convert_embeddings(conversion: Conversion) -> None:
    """Replace embeddings by quantised ones where a quantize step asks for it."""
    step = conversion.quantize
    if step is not None and step.embeddings:
        bits = step.embeddings
        _convert(conversion, TABLES, lambda kind, module: kind.from_float(module, bits=bits))


def _convert(
    conversion: Conversion, kinds: Mapping[type[nn.Module], Any], build: Callable[[Any, nn.Module], PackedLayer]
) -> None:
    run = conversion.run
    names: dict[nn.Module, list[str]] = {}
    for name, module in run.model.named_modules(remove_duplicate=False):
        if type(module) in kinds:
            names.setdefault(module, []).append(name)
    if not names:
        return
    tied = {} if run.untie else modules.tied_parameters(run.model)
    seen = _first_inputs(conversion, names)
    for module, places in names.items():
        kind = kinds[type(module)]
        reason = None if run.selected(places[0]) else "not selected"
        reason = reason or kind.reason_against(module) or tied.get(id(module))
        choice = Choice(Candidate(tuple(places), module, None), reason, forced=run.force and reason is None)
        made = None
        if reason is None:
            made = build(kind, module)
            made._tersor_name = places[0]
            if not run.force:
                _judge(choice, module, made, seen.get(id(module)))
        if choice.reason is None and made is not None:
            conversion.replacements[module], conversion.names[module] = made, tuple(places)
        conversion.rows[module] = layer_row(choice, made if choice.reason is None else None)


def _first_inputs(conversion: Conversion, layers: Mapping[nn.Module, Any]) -> dict[int, Tensor]:
    """What the first call of each layer was given on the example inputs, by its id."""
    seen: dict[int, Tensor] = {}

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        x = args[0] if args else None
        if isinstance(x, Tensor) and len(args) == 1 and not kwargs:
            seen.setdefault(id(layer), x.detach().clone())

    if conversion.run.inputs and not conversion.run.force:
        with observe.watching_calls(layers, note):
            observe.run(conversion.run.model, conversion.run.inputs[0], "example_inputs")
    return seen


def _judge(choice: Choice, module: Any, made: PackedLayer, x: Tensor | None) -> None:
    """Measure both on this host; the choice is closed unless the new one is faster."""
    if x is None:
        x = _example(module, made.dtype)
    table = isinstance(module, nn.Embedding | nn.EmbeddingBag)
    rows, margin = (x.numel(), 0.0) if table else (x.numel() // x.shape[-1], MARGIN)
    with torch_threads(torch.get_num_threads()), torch.inference_mode():
        (float_us, tersor_us), _ = race([module], [made], x)
    choice.rows, choice.verdict = (rows,), decide({rows: float_us}, {rows: tersor_us}, margin)
    if not choice.verdict.faster:
        choice.reason = choice.verdict.reason


def _example(module: Any, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        bag = (1, _LOOKUPS) if isinstance(module, nn.EmbeddingBag) else (_LOOKUPS,)
        return torch.randint(0, module.num_embeddings, bag, generator=generator)
    shape: tuple[int, ...] = (
        (1, module.input_size) if isinstance(module, nn.RNNCellBase) else (_STEPS, 1, module.input_size)
    )
    if getattr(module, "batch_first", False):
        shape = (1, _STEPS, module.input_size)
    return torch.randn(shape, generator=generator).to(dtype)

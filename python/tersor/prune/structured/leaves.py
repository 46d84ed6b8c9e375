"""Modules of torch whose inside is not traced: what goes in, what comes out, and which slices are one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tersor.prune.structured.trace import Axis, Tracer, observe_tensors


def recurrent(tracer: Tracer, name: str, module: Any, args: tuple[Any, ...], output: Any) -> None:
    """LSTM and GRU: unit h is row h of every gate, in every layer and direction, and column h of what reads the state.

    All layers and directions share ``hidden_size``, so their units of one number leave together.
    """
    axes = tracer.coupling.axes
    where = f"{name}." if name else ""
    if module.proj_size:
        tracer.pin_all([args, list(module.parameters())], f"{name} projects its state, which is not understood")
        return
    x = args[0].data if isinstance(args[0], PackedSequence) else args[0]
    size = module.hidden_size
    units: Axis = None
    for layer in range(module.num_layers):
        for suffix in ("", "_reverse") if module.bidirectional else ("",):
            for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                rows = axes.get((f"{where}{key}_l{layer}{suffix}", 0))
                for gate in rows.reshape(-1, size) if rows is not None and size > 1 else ():
                    units = tracer.meet(*([gate] if units is None else [units, gate]), what="a gate")
                if rows is not None and key.startswith("weight"):
                    tracer.coupling.producers[f"{where}{key}_l{layer}{suffix}", 0] = name
            inner = axes.get((f"{where}weight_hh_l{layer}{suffix}", 1))
            if units is not None:
                tracer.meet(units, inner, what="the state")
            columns = axes.get((f"{where}weight_ih_l{layer}{suffix}", 1))
            _note_work(tracer, module, x, layer, columns, axes.get((f"{where}weight_ih_l{layer}{suffix}", 0)), inner)
            if layer == 0:
                tracer.meet(tracer.axes(x)[-1], columns, what="the input")
            elif columns is not None and units is not None:
                for part in columns.reshape(-1, size):
                    tracer.meet(units, part, what="the layer before")
            tracer.coupling.consumers[f"{where}weight_ih_l{layer}{suffix}", 1] = name
    _recurrent_outputs(tracer, module, units, output)
    tracer.pin_all(list(args[1:]), f"{name} is given a state of fixed size")
    if len(args) > 1 and args[1] is not None and units is not None:
        tracer.pin(units, f"{name} is given a state of fixed size")


def _note_work(tracer: Tracer, module: Any, x: Tensor, layer: int, columns: Axis, rows: Axis, inner: Axis) -> None:
    steps, size = x.numel() // x.shape[-1], module.hidden_size
    gates = 4 if isinstance(module, nn.LSTM) else 3
    width = x.shape[-1] if layer == 0 else size * (2 if module.bidirectional else 1)
    for inputs, axis in ((width, columns), (size, inner)):
        tracer.note_product("recurrence", (), [(steps, None), (gates * size, rows), (inputs, axis)])


def _recurrent_outputs(tracer: Tracer, module: Any, units: Axis, output: Any) -> None:
    sequence, state = output
    sequence = sequence.data if isinstance(sequence, PackedSequence) else sequence
    both = units if units is None or not module.bidirectional else np.concatenate([units, units])
    tracer.put(sequence, [*[None] * (sequence.dim() - 1), both])
    for tensor in observe_tensors(state):
        tracer.put(tensor, [*[None] * (tensor.dim() - 1), units])


def attention(tracer: Tracer, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """``nn.MultiheadAttention`` checks that its heads make up its whole width, so nothing of it can leave."""
    reason = f"{name} is an nn.MultiheadAttention, whose width is fixed"
    tracer.pin_all([list(args), list(module.parameters()), output], reason)


LEAVES: dict[type[nn.Module], Callable[[Tracer, str, Any, tuple[Any, ...], Any], None]] = {
    nn.LSTM: recurrent,
    nn.GRU: recurrent,
    nn.MultiheadAttention: attention,
}

"""nn.GRU and nn.LSTM with int8 weights: layers, directions, batches and packed sequences."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tersor.nn.packed_layer import DTYPE_NAMES
from tersor.nn.recurrent_layer import RecurrentLayer
from tersor.nn.registry import register


class SequenceLayer(RecurrentLayer):
    """The call surface of nn.GRU and nn.LSTM."""

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """A layer without weights: use from_float, or load_state_dict afterwards. Arguments are those of nn.GRU."""
        config: dict[str, Any] = {
            "input_size": input_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "bias": bias,
        }
        config |= {"batch_first": batch_first, "dropout": float(dropout), "bidirectional": bidirectional}
        super().__init__({**config, "dtype": DTYPE_NAMES[dtype or torch.get_default_dtype()]}, device)

    def _forward(self, input: Any, states: tuple[Tensor, ...] | None) -> tuple[Any, tuple[Tensor, ...]]:
        packed = input if isinstance(input, PackedSequence) else None
        x = self._check_input(input if packed is None else packed.data, (2,) if packed is not None else (2, 3))
        dtype, unbatched = x.dtype, packed is None and x.dim() == 2
        if packed is not None:
            sizes, batch = packed.batch_sizes, int(packed.batch_sizes[0])
        else:
            if unbatched:
                x = x.unsqueeze(1)
            elif self.batch_first:
                x = x.transpose(0, 1)
            steps, batch = x.shape[:2]
            sizes = torch.full((steps if batch else 0,), batch, dtype=torch.int64)  # no sequences: nothing to run
            x = x.reshape(steps * batch, x.shape[2])
        rows, last = self._run(x.float(), sizes, self._states(states, batch, unbatched, packed))
        rows, last = rows.to(dtype), tuple(state.to(dtype) for state in last)
        if packed is not None:
            order = packed.unsorted_indices
            last = last if order is None else tuple(state.index_select(1, order) for state in last)
            return PackedSequence(rows, sizes, packed.sorted_indices, order), last
        y = rows.reshape(steps, batch, rows.shape[1])
        if unbatched:
            return y.squeeze(1), tuple(state.squeeze(1) for state in last)
        return (y.transpose(0, 1) if self.batch_first else y), last

    def _states(
        self, states: tuple[Tensor, ...] | None, batch: int, unbatched: bool, packed: PackedSequence | None
    ) -> list[Tensor]:
        """State and cell of every layer and direction, float32 [layers * directions, batch, hidden]."""
        count = self.num_layers * (2 if self.bidirectional else 1)
        if states is None:
            return [torch.zeros(count, batch, self.hidden_size)] * 2
        shape = (count, self.hidden_size) if unbatched else (count, batch, self.hidden_size)
        found = [self._check_state(state, "hx", shape).reshape(count, batch, self.hidden_size) for state in states]
        if packed is not None and packed.sorted_indices is not None:
            found = [state.index_select(1, packed.sorted_indices) for state in found]
        return found if len(found) == 2 else [*found, found[0]]

    def _run(self, x: Tensor, sizes: Tensor, states: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        last: list[tuple[Tensor, Tensor]] = []
        directions = 2 if self.bidirectional else 1
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                y, state, cell = self._direction(index, x, sizes, states[0][index], states[1][index], direction == 1)
                outputs.append(y)
                last.append((state, cell))
            x = outputs[0] if directions == 1 else torch.cat(outputs, dim=1)
            if self.training and self.dropout and layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout)
        kinds = 2 if self.cell == "lstm" else 1
        return x, tuple(torch.stack([one[kind] for one in last]) for kind in range(kinds))

    def flatten_parameters(self) -> None:
        """Nothing: the weights are packed already."""

    def extra_repr(self) -> str:
        """As nn.GRU's, and what is quantised."""
        names = ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
        defaults = (1, True, False, 0.0, False)
        given = [f"{n}={getattr(self, n)}" for n, d in zip(names, defaults, strict=True) if getattr(self, n) != d]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *given, "weights=int8, activations=dynamic"])


@register
class Int8GRU(SequenceLayer):
    """nn.GRU with int8 weights; the input of all steps and the state of each are quantised row by row.

    The call is that of nn.GRU: a tensor [steps, batch, input] (batch_first: [batch, steps, input]; one sequence:
    [steps, input]) or a PackedSequence, and an optional state [layers * directions, batch, hidden]. It is for
    inference: there are no gradients. docs/recurrent.md has the formulas.

    Raises (forward):
        TersorError: input or state of another shape, dtype or device, gradients wanted, or no weights.
    """

    kind = "int8_gru"
    cell = "gru"
    float_kind = nn.GRU

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """The outputs, and the last state."""
        y, (state,) = self._forward(input, None if hx is None else (hx,))
        return y, state

    @classmethod
    def float_example(cls) -> tuple[nn.Module, Tensor]:
        """nn.GRU(12, 9, 2, bidirectional=True) and x [4, 3, 12]."""
        return nn.GRU(12, 9, 2, bidirectional=True), torch.randn(4, 3, 12)


@register
class Int8LSTM(SequenceLayer):
    """nn.LSTM with int8 weights, as Int8GRU is nn.GRU; the state is a pair (state, cell). There is no proj_size."""

    kind = "int8_lstm"
    cell = "lstm"
    float_kind = nn.LSTM

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Any, tuple[Tensor, Tensor]]:
        """The outputs, and the last state and cell."""
        y, (state, cell) = self._forward(input, hx)
        return y, (state, cell)

    @classmethod
    def float_example(cls) -> tuple[nn.Module, Tensor]:
        """nn.LSTM(12, 9, 2, bidirectional=True) and x [4, 3, 12]."""
        return nn.LSTM(12, 9, 2, bidirectional=True), torch.randn(4, 3, 12)

"""nn.GRUCell and nn.LSTMCell with int8 weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tersor.nn.packed_layer import DTYPE_NAMES
from tersor.nn.recurrent_layer import RecurrentLayer
from tersor.nn.registry import register


class CellLayer(RecurrentLayer):
    """One step: [batch, input] or [input]."""

    is_cell = True
    input_size: int
    hidden_size: int
    bias: bool

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """A cell without weights: use from_float, or load_state_dict afterwards. Arguments are those of nn.GRUCell."""
        config = {"input_size": input_size, "hidden_size": hidden_size, "bias": bias}
        super().__init__({**config, "dtype": DTYPE_NAMES[dtype or torch.get_default_dtype()]}, device)

    def _step(self, input: Any, states: tuple[Tensor, ...] | None) -> tuple[Tensor, Tensor]:
        x = self._check_input(input, (1, 2))
        shape = (*x.shape[:-1], self.hidden_size)
        rows = x.float().reshape(-1, self.input_size)
        if states is None:
            found = [torch.zeros(len(rows), self.hidden_size)]
        else:
            found = [self._check_state(state, "hx", shape).reshape(-1, self.hidden_size) for state in states]
        sizes = torch.full((1,), len(rows), dtype=torch.int64)
        _, state, cell = self._direction(0, rows, sizes, found[0], found[-1], False)
        return state.reshape(shape).to(x.dtype), cell.to(x.dtype) if cell.dim() == 1 else cell.reshape(shape).to(
            x.dtype
        )

    def extra_repr(self) -> str:
        """As nn.GRUCell's, and what is quantised."""
        bias = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{bias}, weights=int8, activations=dynamic"


@register
class Int8GRUCell(CellLayer):
    """nn.GRUCell with int8 weights, for inference; see Int8GRU."""

    kind = "int8_gru_cell"
    cell = "gru"
    float_kind = nn.GRUCell

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state, [batch, hidden] or [hidden]."""
        return self._step(input, None if hx is None else (hx,))[0]

    @classmethod
    def float_example(cls) -> tuple[nn.Module, Tensor]:
        """nn.GRUCell(12, 9) and x [3, 12]."""
        return nn.GRUCell(12, 9), torch.randn(3, 12)


@register
class Int8LSTMCell(CellLayer):
    """nn.LSTMCell with int8 weights, for inference; see Int8LSTM."""

    kind = "int8_lstm_cell"
    cell = "lstm"
    float_kind = nn.LSTMCell

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The next state and cell, [batch, hidden] or [hidden] each."""
        return self._step(input, hx)

    @classmethod
    def float_example(cls) -> tuple[nn.Module, Tensor]:
        """nn.LSTMCell(12, 9) and x [3, 12]."""
        return nn.LSTMCell(12, 9), torch.randn(3, 12)

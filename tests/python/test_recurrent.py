"""Int8GRU, Int8LSTM and their cells: close to the float layers within a bound, every way to call them, state, files."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import tersor
from tersor.errors import TersorError
from tersor.nn import REGISTRY, Int8GRU, Int8GRUCell, Int8LSTM, Int8LSTMCell
from tersor.ops import RECURRENT_S8

KINDS = ("int8_gru", "int8_gru_cell", "int8_lstm", "int8_lstm_cell")
LAYERS = [(nn.GRU, Int8GRU), (nn.LSTM, Int8LSTM)]


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest) -> tuple[Any, nn.Module, Any, Tensor]:
    torch.manual_seed(0)
    cls: Any = REGISTRY[request.param]
    module, x = cls.float_example()
    return cls, module.eval(), cls.from_float(module), x


def call(layer: nn.Module, *args: Any) -> list[Tensor]:
    """The tensors of the result."""
    with torch.no_grad():
        result = layer(*args)

    def flat(value: Any) -> list[Tensor]:
        if isinstance(value, PackedSequence):
            return [value.data]
        return [value] if isinstance(value, Tensor) else [t for part in value for t in flat(part)]

    return flat(result)


def assert_close(got: list[Tensor], expected: list[Tensor], bound: float = 0.03) -> None:
    """States lie in [-1, 1]: an 8-bit input and state, and weights of 1/127, leave an error of some 1/127."""
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert (one - other).abs().max() < bound


def test_is_close_to_the_float_layer(case: Any) -> None:
    _, module, layer, x = case
    assert_close(call(layer, x), call(module, x))
    assert_close(call(layer, x), call(layer.to_float(), x))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("float_kind", "kind"), LAYERS)
def test_layers_directions_and_states(float_kind: Any, kind: Any, layers: int, batch_first: bool) -> None:
    torch.manual_seed(1)
    for bidirectional in (False, True):
        module = float_kind(10, 16, layers, batch_first=batch_first, bidirectional=bidirectional, bias=layers == 1)
        layer = kind.from_float(module)
        x = torch.randn(3, 5, 10)
        count = layers * (2 if bidirectional else 1)
        state = torch.rand(count, 3 if batch_first else 5, 16) - 0.5
        hx = state if float_kind is nn.GRU else (state, torch.rand_like(state) - 0.5)
        assert_close(call(layer, x), call(module, x))
        assert_close(call(layer, x, hx), call(module, x, hx))
        one, alone = x[0], state[:, 0]
        hx = alone if float_kind is nn.GRU else (alone, alone)
        assert_close(call(layer, one, hx), call(module, one, hx))


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize(("float_kind", "kind"), LAYERS)
def test_packed_sequences(float_kind: Any, kind: Any, sort: bool) -> None:
    torch.manual_seed(2)
    module = float_kind(10, 16, 2, bidirectional=True, batch_first=True)
    layer = kind.from_float(module)
    x, lengths = torch.randn(4, 6, 10), torch.tensor([6, 4, 4, 1] if sort else [4, 1, 6, 4])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=sort)
    state = torch.rand(4, 4, 16) - 0.5
    hx = state if float_kind is nn.GRU else (state, state)
    assert_close(call(layer, packed, hx), call(module, packed, hx))
    with torch.no_grad():
        y, last = layer(packed)
        padded, got_lengths = pad_packed_sequence(y, batch_first=True)
        assert torch.equal(got_lengths, lengths)
        for index, length in enumerate(lengths.tolist()):  # each sequence as if it were alone
            alone, own = layer(x[index : index + 1, :length])
            assert torch.equal(padded[index, :length], alone[0])
            pairs = [(own, last)] if float_kind is nn.GRU else zip(own, last, strict=True)
            assert all(torch.equal(mine[:, 0], theirs[:, index]) for mine, theirs in pairs)


def test_cells_are_steps_of_the_layers() -> None:
    torch.manual_seed(3)
    gru, lstm = nn.GRU(10, 16), nn.LSTM(10, 16)
    gru_cell, lstm_cell = nn.GRUCell(10, 16), nn.LSTMCell(10, 16)
    for layer, cell in ((gru, gru_cell), (lstm, lstm_cell)):
        cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    x = torch.randn(4, 3, 10)
    with torch.no_grad():
        state = None
        fast = Int8GRUCell.from_float(gru_cell)
        for step, y in zip(x, Int8GRU.from_float(gru)(x)[0], strict=True):
            state = fast(step, state)
            assert torch.equal(state, y)
        pair = None
        quick = Int8LSTMCell.from_float(lstm_cell)
        for step, y in zip(x, Int8LSTM.from_float(lstm)(x)[0], strict=True):
            pair = quick(step, pair)
            assert torch.equal(pair[0], y)
        assert torch.equal(fast(x[0, 1]), fast(x[0])[1])


def test_dtypes(case: Any) -> None:
    _, _, layer, x = case
    for dtype in (torch.bfloat16, torch.float16):
        expected = [t.to(dtype) for t in call(layer, x.to(dtype).float())]
        assert all(torch.equal(a, b) for a, b in zip(call(layer, x.to(dtype)), expected, strict=True))


def test_state_dicts_copies_and_files(case: Any, tmp_path: Path) -> None:
    cls, module, layer, x = case
    expected = call(layer, x)
    other = cls.from_config(layer.config())
    assert set(other.state_dict()) == set(cls.expected_tensors(layer.config()))
    with pytest.raises(TersorError, match="no weights"):
        other(x)
    other.load_state_dict(layer.state_dict())
    holder = nn.ModuleDict({"rnn": layer})
    tersor.save(holder, tmp_path / "rnn.tersor")
    loaded = tersor.load(tmp_path / "rnn.tersor", model=nn.ModuleDict({"rnn": copy.deepcopy(module)}))["rnn"]
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert type(twin) is cls
        assert all(torch.equal(a, b) for a, b in zip(call(twin, x), expected, strict=True))
    state = layer.state_dict()
    key = next(key for key in state if key.endswith("_scale"))
    with pytest.raises(RuntimeError, match="scale"):
        layer.load_state_dict({**state, key: -state[key]})
    for bad in ({**layer.config(), "hidden_size": 0}, {**layer.config(), "more": 1}, {}, None):
        with pytest.raises(ValueError, match="expected"):
            cls.from_config(bad)


@pytest.mark.parametrize("kind", [Int8GRU, Int8LSTM])
@pytest.mark.parametrize("shape", [(3, 0, 12), (0, 2, 12), (0, 0, 12)])
def test_nothing_to_run(kind: Any, shape: tuple[int, ...]) -> None:
    module, _ = kind.float_example()
    y, state = kind.from_float(module)(torch.randn(shape))
    state = state[0] if isinstance(state, tuple) else state
    assert y.shape == (*shape[:2], 18)
    assert state.shape == (4, shape[1], 9)


def test_refusals() -> None:
    for module, message in [
        (nn.LSTM(4, 6, proj_size=3), "proj_size"),
        (nn.RNN(4, 6), "not an nn.LSTM"),
        (nn.LSTM(4, 6, dtype=torch.float64), "float64"),
        (nn.utils.parametrizations.weight_norm(nn.LSTM(4, 6), "weight_hh_l0"), "LSTM"),
    ]:
        with pytest.raises(ValueError, match=message):
            Int8LSTM.from_float(module)
    layer = Int8LSTM.from_float(nn.LSTM(4, 6))
    layer._tersor_name = "decoder.rnn"
    x = torch.randn(2, 3, 4)
    for bad, message in [
        (x[..., 1:], "of 4 values"),
        (x.double(), r"x\.float\(\)"),
        (x.sum(), "dimensions"),
        (x.clone().requires_grad_(), "no_grad"),
        ("x", "dense tensor"),
    ]:
        with pytest.raises(TersorError, match=f"decoder.rnn.*{message}"):
            layer(bad)
    with pytest.raises(TersorError, match=r"hx: expected \[1, 3, 6\]"):
        layer(x, (torch.zeros(1, 2, 6), torch.zeros(1, 3, 6)))


def test_compile_and_opcheck() -> None:
    torch.manual_seed(4)
    layer, x = Int8LSTM.from_float(nn.LSTM(10, 16)), torch.randn(3, 2, 10)
    layer(x)
    compiled = torch.compile(lambda x: layer(x * 2)[0] + 1, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x * 2)[0] + 1)
    state = torch.zeros(2, 16)
    arguments = (x.reshape(6, 10), layer.packed, 0, torch.full((3,), 2), state, state, 0)
    torch.library.opcheck(RECURRENT_S8, arguments)
    for index, bad, message in [
        (0, x, "x: expected shape"),
        (2, 1 << 40, "offset"),
        (3, torch.full((3,), 1), "batch_sizes"),
        (4, state[:, 1:], "state: expected shape"),
        (5, state.double(), "cell: expected float32"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            RECURRENT_S8(*arguments[:index], bad, *arguments[index + 1 :])

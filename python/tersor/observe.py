"""Running a model to look at its layers: rows per layer, ranges of their inputs, errors against a replacement."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tersor import processes
from tersor.errors import SwapError
from tersor.modules import accelerated_types
from tersor.quantize import ChannelRange, RowSample

Hook = Callable[[nn.Module, Tensor, Tensor], None]
CallHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


@dataclass
class Seen:
    """What one layer was given.

    Attributes:
        rows: the numbers of rows (all leading dimensions multiplied), one per kind of call, ascending.
        dtype: the dtype of its input.
        channels, sample: the range of every channel of its input, and some rows of it; None where not asked for.
    """

    rows: set[int] = field(default_factory=set)
    dtype: torch.dtype = torch.float32
    channels: ChannelRange | None = None
    sample: RowSample | None = None

    def add_values(self, x: Tensor) -> ChannelRange:
        """Takes an input [..., channels] into the ranges and the sample."""
        if self.channels is None or self.sample is None:
            self.channels, self.sample = ChannelRange(x.shape[-1]), RowSample(x.shape[-1], x.dtype)
        self.channels.add(x)
        self.sample.add(x)
        return self.channels

    def merge(self, parts: Sequence[Seen]) -> None:
        """Become all of what the parts saw."""
        self.rows = set[int]().union(*(part.rows for part in parts))
        channels = [part.channels for part in parts if part.channels is not None]
        samples = [part.sample.state() for part in parts if part.sample is not None]
        if self.channels is not None and self.sample is not None:
            for other in channels:
                self.channels.add(torch.stack([other.low, other.high]))
            self.sample.merge(samples)


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model on a tensor (or any object), a tuple or list of arguments, or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple | list):
        return model(*inputs)
    return model(inputs)


def run(model: nn.Module, inputs: Any, what: str) -> Any:
    """Call ``model`` quietly (see :func:`quiet`).

    Raises:
        SwapError: the model's own forward failed; its exception is chained.
    """
    with quiet(model):
        try:
            return call(model, own(inputs))
        except SwapError:
            raise
        except Exception as error:
            how = {"Mapping": "model(**inputs)", "Sequence": "model(*inputs)"}.get(_shape_of(inputs), "model(inputs)")
            raise SwapError(
                f"the model failed on {what}, called as {how} with {describe(inputs)}: "
                f"{type(error).__name__}: {error}. The model was left as it was."
            ) from error


def _shape_of(inputs: Any) -> str:
    return "Mapping" if isinstance(inputs, Mapping) else "Sequence" if isinstance(inputs, tuple | list) else ""


def own(inputs: Any) -> Any:
    """The same tensors in containers of their own: sentence-transformers writes into what it is given."""
    if type(inputs) in (list, tuple):
        return type(inputs)(own(value) for value in inputs)
    if isinstance(inputs, MutableMapping):
        made = copy.copy(inputs)
        for key, value in inputs.items():
            made[key] = own(value)
        return made
    return inputs


def describe(inputs: Any) -> str:
    """Types and shapes of a model's inputs in a few words."""
    if isinstance(inputs, Tensor):
        return f"{inputs.dtype} {tuple(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return "{" + ", ".join(f"{key}: {describe(value)}" for key, value in inputs.items()) + "}"
    if isinstance(inputs, tuple | list):
        return "(" + ", ".join(describe(value) for value in inputs) + ")"
    return type(inputs).__name__


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Run a model without leaving a trace: eval mode, no gradients, fixed random numbers, everything put back after.

    Torch's fused attention path is off meanwhile, because it passes the layers by. Training flags, buffers, the
    random state of torch's CPU generator and the switch of the fused path are as before when the block ends.
    """
    training = [(module, module.training) for module in model.modules()]
    buffers = [(owner, key, tensor, tensor.clone()) for owner, key, tensor in _own_buffers(model)]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        for module, _ in training:
            module.training = False
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, flag in training:
            module.training = flag
        with torch.no_grad():
            for owner, key, tensor, value in buffers:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
                owner._buffers[key] = tensor


def _own_buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in model.modules():
        if isinstance(module, accelerated_types()):
            continue
        for key, tensor in module._buffers.items():
            if tensor is not None and not nn.parameter.is_lazy(tensor) and tensor.device.type == "cpu":
                yield module, key, tensor


@contextlib.contextmanager
def watching(layers: Iterable[nn.Module], hook: Hook) -> Iterator[None]:
    """Call ``hook(layer, input, output)`` after every call of the layers, before any hook of their own."""

    def on_call(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(x, Tensor) and isinstance(output, Tensor):
            hook(layer, x, output)

    with watching_calls(layers, on_call):
        yield


@contextlib.contextmanager
def watching_calls(layers: Iterable[nn.Module], on_call: CallHook) -> Iterator[None]:
    """Call ``on_call(layer, args, kwargs, output)`` after every call of the layers, before any hook of their own."""
    with contextlib.ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_hook(on_call, prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def observe_rows(model: nn.Module, layers: Iterable[nn.Module], *inputs: Any, values: bool = False) -> dict[int, Seen]:
    """Run the model once on each of the inputs and note the rows and the dtype each layer gets.

    Args:
        values: note the ranges of its channels too, and some rows.

    Returns:
        What each layer saw, by its id; layers that were never called are absent.

    Raises:
        SwapError: the model failed on the inputs.
    """
    seen: dict[int, Seen] = {}

    def note(layer: nn.Module, x: Tensor, _: Tensor) -> None:
        entry = seen.setdefault(id(layer), Seen(dtype=x.dtype))
        if x.numel():
            entry.rows.add(x.numel() // x.shape[-1])
            if values:
                entry.add_values(x)

    with watching(layers, note):
        for batch in inputs:
            run(model, batch, "example_inputs")
    return seen


def observe_ranges(model: nn.Module, layers: dict[str, nn.Module], batches: Iterable[Any]) -> dict[int, Seen]:
    """Run the model over calibration batches and note the ranges of each layer's input channels and some rows.

    The batches are looked at one after another and not kept; the notes take no more memory than 66 rows. In a process
    group the batches are shared out, and every process gets the notes that one would have.

    Raises:
        SwapError: the model failed on a batch, there was no batch, or a layer was given NaN or infinity.
    """
    names = {id(layer): name for name, layer in layers.items()}
    seen: dict[int, Seen] = {}

    def note(layer: nn.Module, x: Tensor, _: Tensor) -> None:
        if not x.numel():
            return
        entry = seen.setdefault(id(layer), Seen(dtype=x.dtype))
        if not entry.add_values(x).is_finite:
            raise SwapError(
                f"{names[id(layer)]} was given NaN or infinity in calibration batch {processes.batch_number()}"
            )

    with watching(layers.values(), note):
        count = processes.share(batches, lambda index, batch: run(model, batch, f"calibration batch {index}"))
    if count == 0:
        raise SwapError("the calibration data held no batch; a generator can be used only once")
    return _seen_by_all(seen, layers.values())


def _seen_by_all(seen: dict[int, Seen], layers: Iterable[nn.Module]) -> dict[int, Seen]:
    """What the layers were given in this process and in the others."""
    if processes.size() == 1:
        return seen
    whole = {}
    for layer in layers:
        parts = [part for part in processes.gather(seen.get(id(layer))) if part is not None]
        if parts:
            whole[id(layer)] = parts[0]
            parts[0].merge(parts)
    return whole


def floats(output: Any) -> Iterator[Tensor]:
    """Every floating-point tensor in a model's output: a tensor, or mappings and sequences of such."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from floats(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from floats(value)

"""The life of a layer whose weight lives in one packed buffer: devices, dtypes, state dicts, copies, pickles.

Files, state dicts and pickles hold the canonical tensors (weight_q, weight_scale, bias); packing is a cache of the
CPU or GPU that runs the layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from multiprocessing.context import get_spawning_popen
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tersor.errors import NativeError, TersorError
from tersor.nn.layer_contract import DTYPE_NAMES, DTYPES, Expected, LayerContract

__all__ = ["DTYPES", "DTYPE_NAMES", "Expected", "PackedLayer", "check_place"]


class PackedLayer(LayerContract):
    """Base of the replacement layers. A subclass names its kind and says how to pack, unpack and describe itself.

    A layer without weights (made by its constructor or from_config) has an empty `packed` buffer until `fill` or
    load_state_dict; on `meta` it stays empty. Layers run on the CPU and, where they say how to pack for it, on CUDA.
    """

    _float_weights: ClassVar[tuple[str, ...]] = ("weight",)  # what a state dict of the float layer has instead
    registered_as: ClassVar[type[PackedLayer] | None] = None  # for classes made while a program runs: what files name
    packed: Tensor
    _dtype: torch.dtype
    _transient: ClassVar[frozenset[str]] = frozenset({"_weight_view"})  # attributes that copies and pickles do without
    _tersor_name: str = ""  # the qualified name inside the model, for messages; set by tersor.swap

    # --- State.

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the bias and of `weight` as it is read. Inputs may have another; outputs follow the input."""
        return next((p.dtype for p in self._parameters.values() if p is not None), self._dtype)

    @property
    def has_weights(self) -> bool:
        """False until weights are loaded into a layer that was made without them."""
        return self._buffers["packed"].numel() > 0  # type: ignore[union-attr]

    def canonical_tensors(self) -> dict[str, Tensor]:
        """The tensors that define the layer, on the CPU, independent of what runs it. Weights are made for the call.

        Raises:
            TersorError: the layer has no weights yet.
        """
        if not self.has_weights:
            raise TersorError(f"{self._label()} has no weights yet: load a state dict first")
        return {**self._unpack(), **{name: tensor.cpu() for name, tensor in self._float_tensors().items()}}

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes canonical tensors, checks them against expected_tensors(config()), packs in blocks of rows.

        Raises:
            ValueError: a missing or unexpected name, a wrong dtype or shape, a value out of range.
        """
        expected = self.expected_tensors(self.config())
        if tensors.keys() != expected.keys():
            raise ValueError(f"{self._label()}: expected tensors {sorted(expected)}, got {sorted(tensors)}")
        for name, spec in expected.items():
            _check_tensor(name, tensors[name], spec)
        packed = self._pack_checked(tensors)
        for name in self._float_tensors():
            parameter = tensors[name].detach().clone().to(packed.device)
            self._parameters[name] = nn.Parameter(parameter, requires_grad=False)
        self._take_packed(packed)

    def _start_empty(self, dtype: torch.dtype, device: torch.device | str | None) -> None:
        check_place(torch.empty(0, dtype=dtype, device=device))
        self._dtype = dtype
        self.register_buffer("packed", torch.empty(0, dtype=torch.uint8, device=device), persistent=False)

    def _take_packed(self, packed: Tensor) -> None:
        self._buffers["packed"] = packed
        self.__dict__.pop("_weight_view", None)  # it would keep the old bytes alive

    def _label(self) -> str:
        return f"{type(self).__name__} {self._tersor_name!r}" if self._tersor_name else type(self).__name__

    def _float_tensors(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._parameters.items() if p is not None}

    def _pack_checked(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Canonical tensors, packed for the device that the layer is on."""
        device = self.packed.device
        try:
            packed = self._pack(tensors)
            return self._moved(packed, device) if device.type == "cuda" else packed
        except RuntimeError as error:  # the native checks of values
            raise ValueError(str(error)) from error

    # --- Moving.

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        packed = self.packed
        probe = fn(torch.empty(1, dtype=self.dtype, device=packed.device))
        check_place(probe)
        repacked = self._repacked(probe.device)  # before anything is changed
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._dtype = probe.dtype
        moved = self.packed
        if repacked is not None:
            moved = repacked
        elif moved.dtype != torch.uint8:  # module.type(dtype) casts every tensor
            moved = packed
        elif moved.is_meta or (moved is not packed and (packed.is_meta or not torch.equal(moved.cpu(), packed.cpu()))):
            moved = torch.empty(0, dtype=torch.uint8, device=moved.device)  # to("meta"), to_empty
        self._take_packed(moved)
        return self

    def _repacked(self, device: torch.device) -> Tensor | None:
        """The packed weight in the layout of another kind of device; None where nothing has to change."""
        if not self.has_weights or {device.type, self.packed.device.type} != {"cpu", "cuda"}:
            return None
        try:
            return self._moved(self.packed, device)
        except (ValueError, NativeError) as error:
            hint = "keep it on the CPU, or get the float layer back with to_float() or tersor.restore(model)"
            raise TersorError(f"{self._label()} cannot move to {device}: {error}; {hint}") from error

    # --- State dicts.

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.has_weights:
            tensors = self._unpack()
        else:
            expected = self.expected_tensors(self.config())
            weights = {name: spec for name, spec in expected.items() if name not in self._parameters}
            tensors = {name: torch.empty(shape, dtype=d, device="meta") for name, (d, shape) in weights.items()}
        destination.update({prefix + name: tensor for name, tensor in tensors.items()})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        expected = {
            name: spec for name, spec in self.expected_tensors(self.config()).items() if name not in self._parameters
        }
        names = {*expected, *self.optional, *self._float_weights}
        given = {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}
        known = {prefix + name for name in given}
        unexpected_keys[:] = [key for key in unexpected_keys if key not in known]  # the list of the whole model
        floats = [name for name in self._float_weights if name not in expected]
        needed = floats if any(name in given for name in floats) else expected
        absent = [prefix + name for name in needed if name not in given]
        if absent:
            missing_keys.extend(absent if strict else ())
            return
        try:
            packed = self._packed_from(given, expected)
        except ValueError as error:
            error_msgs.append(f"While loading {prefix.rstrip('.') or type(self).__name__}: {error}.")
            return
        if not self.packed.is_meta or local_metadata.get("assign_to_params_buffers", False):
            self._take_packed(packed)

    def _packed_from(self, given: Mapping[str, Any], expected: Expected) -> Tensor:
        floats = given.keys() & {*self._float_weights} - expected.keys()
        if floats and len(given) > len(floats):
            raise ValueError("found a float weight and quantised tensors; keep one of the two")
        if extra := given.keys() - expected.keys() - floats:
            raise ValueError(f"found {', '.join(sorted(extra))}, which a layer of this configuration has no place for")
        for name, tensor in given.items():
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{name}: expected a tensor, got {type(tensor).__name__}")
            if name in expected:
                _check_tensor(name, tensor, expected[name])
        return self._pack_checked({name: tensor.cpu() for name, tensor in given.items()})

    # --- Copies and pickles.

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in self._transient}
        # A process being spawned on this host takes the packed bytes as they are, in shared memory.
        if self.has_weights and get_spawning_popen() is None:
            nothing = torch.empty(0, dtype=torch.uint8, device=self.packed.device)  # says where the layer is
            state["_buffers"] = {**self._buffers, "packed": nothing}
            state["_canonical"] = self._unpack()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        canonical = state.get("_canonical")
        state = {name: value for name, value in state.items() if name != "_canonical"}
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if canonical is not None:
            self._buffers["packed"] = self._pack_checked(canonical)

    def __copy__(self) -> Self:
        clone = self.__class__.__new__(self.__class__)
        clone.__dict__.update(self.__dict__)
        return clone

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        state = {name: value for name, value in self.__dict__.items() if name not in self._transient}
        clone.__dict__.update(copy.deepcopy(state, memo))
        return clone


def check_place(probe: Tensor) -> None:
    """Raises TypeError or RuntimeError unless a layer can live with this dtype and on this device."""
    if probe.dtype not in DTYPE_NAMES:
        raise TypeError(f"tersor layers take {', '.join(DTYPES)}, got {probe.dtype}; convert the model to one of these")
    if probe.device.type not in ("cpu", "cuda", "meta"):
        raise RuntimeError(
            f"tersor layers run on the CPU and on CUDA, got device {probe.device}; move the input to the CPU, or get "
            "the float layer back with to_float() or tersor.restore(model)"
        )


def _check_tensor(name: str, tensor: Tensor, expected: tuple[torch.dtype, tuple[int, ...]]) -> None:
    dtype, shape = expected
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        got = f"{tensor.dtype} {list(tensor.shape)}"
        raise ValueError(f"{name}: expected {dtype} {list(shape)}, got {got}")
    if tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name}: expected a CPU tensor, got one on {tensor.device}")

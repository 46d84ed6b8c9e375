"""Models whose weights, gradients and optimiser states are split among the processes: torch's FSDP2, and back again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from tersor import processes
from tersor.errors import GoneError, TersorError, TrainError
from tersor.modules import tied_parameters

try:
    from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
    from torch.distributed._composable_state import _module_state_mapping
    from torch.distributed.fsdp import FSDPModule, fully_shard
    from torch.distributed.tensor import DTensor
except ImportError:  # torch without distributed, or older than 2.6
    AVAILABLE = False
else:
    AVAILABLE = True

_Place = tuple[nn.Module, str, nn.Parameter]


@contextlib.contextmanager
def sharded(model: nn.Module, shard: bool = True) -> Iterator[None]:
    """While the block runs every process holds its part of each parameter; afterwards the model is as before.

    Every element of a ``ModuleList`` or ``Sequential`` that has parameters is a unit, whose weights are gathered when
    it is called and freed behind it; the rest is the unit of the model itself. Parameters without dimensions, and
    buffers, stay whole in every process. At the end the parameters are the same objects with the new values, in all
    processes. After an error that is not this library's the model stays split and is of no use.

    Args:
        shard: False, or a single process, leaves the model alone, as does one that is split already.

    Raises:
        TrainError: this torch can't do it.
    """
    places = [place for place in _places(model) if not is_part(place[2])]
    if not shard or processes.size() == 1 or not places:
        yield
        return
    check()
    scalars = {one for _, _, one in places if one.dim() == 0}
    with contextlib.ExitStack() as undo:
        for unit in _units(model):
            undo.callback(_back, unit, type(unit))
            fully_shard(unit, reshard_after_forward=True, ignored_params=scalars)
        places = [place for place in places if place[2] not in scalars]
        for _, _, one in places:
            one.data = one.data.new_empty(0)
        try:
            yield
        except TersorError as error:
            if not isinstance(error, GoneError):
                _whole_again(model, places)
            raise
        _whole_again(model, places)


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """All processes hold a split model's whole weights while the block runs; what it writes into them stays."""
    units = [module for module in model.modules() if AVAILABLE and isinstance(module, FSDPModule)]
    places = [place for place in _places(model) if is_part(place[2])]
    for unit in units:
        unit.unshard()
        _stay(unit, True)
    try:
        yield
        with torch.no_grad():
            for owner, name, part in places:
                whole = owner._parameters[name]
                if whole is not None and not is_part(whole):
                    local(part).copy_(part_of(whole, part))
    finally:
        for unit in units:
            _stay(unit, False)
            unit.reshard()


def is_part(tensor: object) -> bool:
    """Whether a tensor is one of which this process holds a part."""
    return AVAILABLE and isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; a whole one is its own."""
    return tensor.to_local() if AVAILABLE and isinstance(tensor, DTensor) else tensor


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that lies where this process's part of ``like`` does, which has its shape."""
    if not is_part(like):
        return whole
    rows = -(-like.shape[0] // processes.size())
    begin = min(processes.rank() * rows, like.shape[0])
    return whole[begin : begin + len(local(like))]


def whole(value: Any) -> Any:
    """A tree of mappings, lists and tensors with whole tensors; all processes have to ask for it."""
    if AVAILABLE and isinstance(value, DTensor):
        return value.full_tensor().detach()
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([whole(item) for item in value])
    return value


def split(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor of the shape of another, split as that one is."""
    if not (AVAILABLE and isinstance(like, DTensor)):
        return value
    own = part_of(value, like).clone()
    return DTensor.from_local(own, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def split_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimiser over whole parameters, for this one, which may be over parts of them."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    moments = {}
    for index, own in state["state"].items():
        like = parameters[index]
        fits = {key for key, value in own.items() if isinstance(value, Tensor) and value.shape == like.shape}
        moments[index] = {key: split(value, like) if key in fits else value for key, value in own.items()}
    return {**state, "state": moments}


def one_by_one(optimizer: torch.optim.Optimizer) -> None:
    """Keep an optimiser over parts from handling parts and whole parameters together, which torch refuses."""
    for group in optimizer.param_groups:
        if group.get("foreach") is None and "foreach" in group and any(is_part(one) for one in group["params"]):
            group["foreach"] = False


def average_whole(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of the parameters that every process holds whole; those without one anywhere have none."""
    wholes = [one for one in parameters if not is_part(one)]
    found = processes.gather([one.grad is not None for one in wholes]) if wholes else []
    for one, anywhere in zip(wholes, map(any, zip(*found, strict=True)), strict=True):
        if anywhere:
            own = torch.zeros_like(one) if one.grad is None else one.grad
            one.grad = processes.total(own) / processes.size()


def clip(parameters: Iterable[nn.Parameter], most: float) -> None:
    """Scale the gradients of all parameters together down to a norm, as ``clip_grad_norm_`` does."""
    gradients = [one.grad for one in parameters if one.grad is not None]
    squares = {True: torch.zeros((), dtype=torch.float64), False: torch.zeros((), dtype=torch.float64)}
    for gradient in gradients:
        squares[is_part(gradient)] += local(gradient).double().square().sum().cpu()
    norm = float(processes.total(squares[True]) + squares[False]) ** 0.5
    for gradient in gradients:
        local(gradient).mul_(min(most / (norm + 1e-6), 1.0))


def check() -> None:
    """Try what splitting a model needs of the process group.

    Raises:
        TrainError: this torch, or its backend, can't do it.
    """
    if not AVAILABLE:
        raise TrainError("shard=True needs torch.distributed.fsdp.fully_shard, which torch has from 2.6 on")
    backend = distributed.get_backend()
    device = "cuda" if backend == "nccl" else "cpu"
    try:
        own = torch.zeros(1, device=device)
        distributed.reduce_scatter_tensor(own, torch.zeros(processes.size(), device=device))
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise TrainError(
            f"shard=True needs reduce_scatter, which the backend {backend!r} of torch {torch.__version__} has not "
            f"({str(error).splitlines()[0]})"
        ) from error


def _places(model: nn.Module) -> Iterator[_Place]:
    for owner in model.modules():
        yield from ((owner, name, one) for name, one in owner._parameters.items() if one is not None)


def _units(model: nn.Module) -> list[nn.Module]:
    """What is split by itself, inner modules first; a module with a parameter that others use too is none."""
    tied = tied_parameters(model)
    found = []
    for owner in model.modules():
        if not isinstance(owner, nn.ModuleList | nn.Sequential):
            continue
        for one in owner:
            shared = any(id(inner) in tied for inner in one.modules())
            if next(one.parameters(), None) is not None and not shared and not isinstance(one, nn.ModuleList):
                found.append(one)
    units = [one for one in dict.fromkeys([model, *found]) if not isinstance(one, FSDPModule)]
    return units[::-1]


def _stay(unit: Any, whole_weights: bool) -> None:
    unit.set_reshard_after_forward(not whole_weights, recurse=False)
    unit.set_reshard_after_backward(not whole_weights, recurse=False)


def _whole_again(model: nn.Module, places: Iterable[_Place]) -> None:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for owner, name, one in places:
        part = owner._parameters[name]
        if is_part(part):
            one.data = whole(part)
            owner._parameters[name] = one


def _back(unit: nn.Module, cls: type[nn.Module]) -> None:
    """Undo ``fully_shard``: the class, the hooks and the notes that it left on a module."""
    state: Any = _module_state_mapping.pop(unit)()
    handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
    handles += [one._post_load_hook_handle for group in state._fsdp_param_groups for one in group.fsdp_params]
    for handle in handles:
        handle.remove()
    unit.__class__ = cls
    for module in unit.modules():
        for name in list(vars(module)):
            if name in ("_is_fsdp_managed_module", "_fsdp_use_orig_params", STATE_KEY, REGISTRY_KEY):
                del module.__dict__[name]

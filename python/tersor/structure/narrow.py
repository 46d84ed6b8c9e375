"""The edit that makes tensors narrower: chosen slices of chosen dimensions stay, and sizes follow."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tersor.checkpoint.strict_json import show
from tersor.errors import StructureError
from tersor.structure import checks
from tersor.structure.generic import set_attributes
from tersor.structure.registry import register_edit


@register_edit("narrow")
def narrow(model: nn.Module, config: dict[str, Any]) -> None:
    """``{"keeps": [MASK, ...], "cuts": {TENSOR: {DIM: index of its mask}}, "modules": {...}, "config": {...}}``.

    A mask is hexadecimal text; slice i of the dimension stays where bit i % 8 (the lowest is 0) of byte i / 8 is 1.
    Sizes that torch's own modules keep beside their tensors (``in_features``, ``num_features``, ``hidden_size``, ...)
    follow from the tensors. ``modules`` and ``config`` are as in ``set_attributes``.
    """
    checks.keys(config, {"keeps", "cuts", "modules", "config"})
    masks = config["keeps"]
    if not isinstance(masks, list):
        raise StructureError("keeps must be a list")
    made: list[tuple[nn.Module, str, Tensor]] = []
    for name, dims in checks.mapping(config["cuts"], "cuts").items():
        module, key, tensor = _tensor(model, name)
        made.append((module, key, _cut(tensor, dims, masks, show(name))))
    _install(model, made)
    set_attributes(model, {"modules": config["modules"], "config": config["config"]})
    for module in {id(module): module for module, _, _ in made}.values():
        sync_sizes(module)


def to_mask(keep: list[int], size: int) -> str:
    """The hexadecimal mask of these slices."""
    bits = bytearray((size + 7) // 8)
    for index in keep:
        bits[index // 8] |= 1 << index % 8
    return bits.hex()


def from_mask(mask: object, size: int, what: str) -> list[int]:
    """The slices that a mask keeps. Raises StructureError for anything but a mask of ``size`` that keeps one."""
    if not isinstance(mask, str) or len(mask) != (size + 7) // 8 * 2 or not set(mask) <= set("0123456789abcdef"):
        raise StructureError(f"{what} of {size} slices has the invalid mask {show(mask)}")
    bits = int.from_bytes(bytes.fromhex(mask), "little")
    if bits >> size or not bits:
        raise StructureError(f"the mask of {what} keeps nothing, or slices beyond the last of {size}")
    return [index for index, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]


def _tensor(model: nn.Module, name: str) -> tuple[nn.Module, str, Tensor]:
    owner, _, key = name.rpartition(".")
    module = checks.submodule(model, owner)
    tensor: Tensor | None = module._parameters.get(key)
    if tensor is None:
        tensor = module._buffers.get(key)
    if tensor is None or nn.parameter.is_lazy(tensor):
        raise StructureError(f"the model has no tensor {show(name)}")
    return module, key, tensor


def _cut(tensor: Tensor, dims: object, masks: list[Any], what: str) -> Tensor:
    shape = list(tensor.shape)
    on_meta = torch.get_default_device().type == "meta"
    new = tensor.detach()
    for dim, index in checks.mapping(dims, f"the cuts of {what}").items():
        if dim not in map(str, range(len(shape))):
            raise StructureError(f"{what} has no dimension {show(dim)}")
        mask = masks[checks.integer(index, f"a mask of {what}", 0, len(masks) - 1)]
        keep = from_mask(mask, shape[int(dim)], f"dimension {dim} of {what}")
        shape[int(dim)] = len(keep)
        if not on_meta:
            new = new.index_select(int(dim), torch.tensor(keep, device=new.device))
    if on_meta:
        new = torch.empty(shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new


def _install(model: nn.Module, made: list[tuple[nn.Module, str, Tensor]]) -> None:
    """Puts new tensors in the places of the old ones; a tied tensor in all of its places."""
    replaced: dict[int, Tensor] = {}
    for module, key, new in made:
        old = module._parameters[key] if key in module._parameters else module._buffers[key]
        if replaced.setdefault(id(old), new) is not new:
            raise StructureError(f"a tensor that is tied to others is cut twice: {show(key)}")
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is not None and id(tensor) in replaced:
                    table[key] = replaced[id(tensor)]  # type: ignore[assignment]
                    sync_sizes(module)


def sync_sizes(module: nn.Module) -> None:
    """Makes the sizes that a module of torch keeps beside its tensors those of the tensors."""
    for cls, sizes in _SIZES.items():
        if isinstance(module, cls):
            _set(module, sizes(module))
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    if conv1d is not None and isinstance(module, conv1d):
        nx, nf = module.weight.shape
        _set(module, {"nx": nx, "nf": nf})


def _set(module: nn.Module, sizes: Mapping[str, Any]) -> None:
    for key, value in sizes.items():
        setattr(module, key, value)


def _conv(module: Any) -> dict[str, Any]:
    out, inner = module.weight.shape[:2]
    return {"out_channels": out, "in_channels": inner * module.groups}


def _transposed_conv(module: Any) -> dict[str, Any]:
    inner, out = module.weight.shape[:2]
    return {"in_channels": inner, "out_channels": out * module.groups}


def _linear(module: Any) -> dict[str, Any]:
    return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}


def _embedding(module: Any) -> dict[str, Any]:
    return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}


def _first(key: str, *tensors: str) -> Any:
    def sizes(module: Any) -> dict[str, Any]:
        found = [tensor for name in tensors if (tensor := getattr(module, name, None)) is not None]
        return {key: found[0].shape[0]} if found else {}

    return sizes


def _layer_norm(module: Any) -> dict[str, Any]:
    return {} if module.weight is None else {"normalized_shape": tuple(module.weight.shape)}


def _recurrent(module: Any) -> dict[str, Any]:
    flat = [getattr(module, name) for name in module._flat_weights_names]
    return {
        "input_size": module.weight_ih_l0.shape[1],
        "hidden_size": module.weight_hh_l0.shape[0] // (4 if isinstance(module, nn.LSTM) else 3),
        "_flat_weights": flat,
    }


_SIZES: dict[type[nn.Module], Any] = {
    nn.modules.conv._ConvTransposeNd: _transposed_conv,
    nn.modules.conv._ConvNd: lambda module: {} if module.transposed else _conv(module),
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.modules.batchnorm._NormBase: _first("num_features", "weight", "running_mean"),
    nn.GroupNorm: _first("num_channels", "weight"),
    nn.LayerNorm: _layer_norm,
    nn.PReLU: _first("num_parameters", "weight"),
    nn.LSTM: _recurrent,
    nn.GRU: _recurrent,
}

"""The layers that can be pruned, each seen as one matrix ``[out, in]``, and their inputs as rows of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from tersor.errors import PruneError
from tersor.modules import tied_parameters


@dataclass(frozen=True)
class PrunableLayer:
    """A linear or convolution layer.

    Attributes:
        name: its qualified name in the model, ``"(model)"`` for the root.
        module: the layer itself. Its weight is looked up at every use, so the model may move between devices.
        transposed: the weight is stored ``[in, out]`` (transformers' Conv1D).
    """

    name: str
    module: nn.Module
    transposed: bool = False

    @property
    def weight(self) -> nn.Parameter:
        """The parameter, in its own shape."""
        weight = self.module._parameters["weight"]
        assert weight is not None
        return weight

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix: outputs, and inputs (times the kernel's size) of one convolution group."""
        weight = self.weight
        if self.transposed:
            return int(weight.shape[1]), int(weight.shape[0])
        return int(weight.shape[0]), weight[0].numel()

    @property
    def groups(self) -> int:
        """Convolution groups; rows ``[g * out / groups, (g + 1) * out / groups)`` share their inputs."""
        return int(getattr(self.module, "groups", 1))

    def matrix(self) -> Tensor:
        """A float32 copy of the weight as ``[out, in]``."""
        return self.to_matrix(self.weight.detach()).to(torch.float32, copy=True)

    def to_matrix(self, tensor: Tensor) -> Tensor:
        """A tensor in the weight's shape, as ``[out, in]``."""
        return tensor.t() if self.transposed else tensor.flatten(1)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`to_matrix`."""
        return matrix.t() if self.transposed else matrix.reshape(self.weight.shape)

    @torch.no_grad()
    def write(self, matrix: Tensor) -> None:
        """Overwrite the weight in place with a matrix ``[out, in]``, cast to the weight's dtype."""
        self.weight.copy_(self.from_matrix(matrix))

    def input_rows(self, x: Tensor) -> Tensor:
        """The input of one call as float32 ``[groups, tokens, in]``: ``y = rows[g] @ matrix[rows of g].T + bias``."""
        x = x.detach().to(torch.float32)
        module = self.module
        if not isinstance(module, nn.Conv1d | nn.Conv2d):
            return x.reshape(1, -1, x.shape[-1])
        flat = isinstance(module, nn.Conv1d)
        if x.ndim == (2 if flat else 3):
            x = x.unsqueeze(0)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
        if flat:
            x, kernel, dilation, stride = x.unsqueeze(2), (1, *kernel), (1, *dilation), (1, *stride)
        patches = functional.unfold(x, kernel, dilation=dilation, stride=stride)  # [n, groups * in, places]
        patches = patches.reshape(len(x), module.groups, -1, patches.shape[2])
        return patches.permute(1, 0, 3, 2).flatten(1, 2)

    def per_row(self, columns: Tensor) -> Tensor:
        """Repeat one vector per group, ``[groups, in]``, for every output of the group: ``[out, in]``."""
        return columns.repeat_interleave(self.shape[0] // self.groups, dim=0)


def find_layers(
    model: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[list[PrunableLayer], dict[str, str]]:
    """The layers to prune, in registration order, and the reason why each other linear or convolution layer is not.

    Args:
        include: shell wildcards on qualified module names; empty means all.
        exclude: shell wildcards of layers to leave alone; they win over ``include``.

    Raises:
        PruneError: an include or exclude pattern matches no module, or nothing is left to prune.
    """
    modules: dict[int, tuple[list[str], nn.Module]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        modules.setdefault(id(module), ([], module))[0].append(name or "(model)")
    everything = [name for names, _ in modules.values() for name in names]
    _check(everything, include, "include")
    _check(everything, exclude, "exclude")
    tied = tied_parameters(model)
    layers, skipped = [], {}
    for names, module in modules.values():
        if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, *_conv1d())):
            continue
        if (pattern := matches(names, exclude)) is not None:
            skipped[names[0]] = f"excluded by {pattern!r}"
        elif include and matches(names, include) is None:
            skipped[names[0]] = "not included"
        elif (reason := _refusal(module) or tied.get(id(module))) is not None:
            skipped[names[0]] = reason
        else:
            layers.append(PrunableLayer(names[0], module, isinstance(module, _conv1d())))
    if not layers:
        why = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise PruneError(f"no layer to prune. {why or 'The model holds no linear or convolution layer'}")
    return layers, skipped


def matches(names: Iterable[str], patterns: Iterable[str]) -> str | None:
    """The first pattern that matches one of the names, else None."""
    return next((pattern for pattern in patterns for name in names if fnmatchcase(name, pattern)), None)


def _conv1d() -> tuple[type[nn.Module], ...]:
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return () if conv1d is None else (conv1d,)


def _refusal(module: nn.Module) -> str | None:
    if parametrize.is_parametrized(module):
        return "is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed by a hook (weight_norm, a pruning mask); make it permanent first"
    if isinstance(weight, nn.UninitializedParameter):
        return "is lazy and has no weight yet; run the model once first"
    if type(module) not in (nn.Linear, nn.Conv1d, nn.Conv2d, *_conv1d()):
        return f"{type(module).__qualname__} is a subclass that may behave differently"
    if type(weight.data) is not Tensor or weight.layout is not torch.strided:
        return "its weight is not a plain tensor"
    if weight.device.type == "meta" or not weight.is_floating_point() or weight.numel() == 0:
        return f"its weight is {weight.dtype} {tuple(weight.shape)} on {weight.device}"
    return None


def _check(names: Iterable[str], patterns: Sequence[str], kind: str) -> None:
    if isinstance(patterns, str):
        raise PruneError(f"{kind} must be a list of wildcards, got the string {patterns!r}")
    known = list(names)
    for pattern in patterns:
        if matches(known, [pattern]) is None:
            raise PruneError(f"{kind} pattern {pattern!r} matches no module of the model")

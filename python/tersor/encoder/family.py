"""What a family of encoder blocks has to say, and the registry of families."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tersor.factorize.factored_linear import FactoredLinear

FAMILIES: dict[str, type[Family]] = {}

LINEAR = (nn.Linear, FactoredLinear)
"""What the linear layers of a block may be."""

FamilyT = TypeVar("FamilyT", bound="type[Family]")


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of a block are, as dotted paths below it, and what else tells what it computes.

    Attributes:
        qkv: the layers of queries, keys and values; or the one nn.MultiheadAttention that holds all three.
        out, up, down: the layer behind the attention, and the two of the feed-forward part.
        norm1, norm2: the norms of the attention and of the feed-forward part.
        heads: how many there are.
        activation: what is between up and down.
        norm_first: norms act on the input of a part (pre-norm) instead of on the sum behind it (post-norm); None where
            only a trial can tell.
    """

    qkv: tuple[str, ...]
    out: str
    up: str
    down: str
    norm1: str
    norm2: str
    heads: int
    activation: str
    norm_first: bool | None

    @property
    def linears(self) -> tuple[str, ...]:
        """Paths of the layers that are called as layers; those of an nn.MultiheadAttention are not."""
        return (*(self.qkv if len(self.qkv) == 3 else ()), self.out, self.up, self.down)

    @property
    def norms(self) -> tuple[str, str]:
        """Paths of both norms."""
        return self.norm1, self.norm2


class Call(NamedTuple):
    """The arguments of a block: x [batch, tokens, hidden], a mask in whatever form, scores to add, if any."""

    x: Tensor
    mask: Tensor | None
    score_bias: Tensor | None


class Family:
    """A form of encoder block. A subclass names its arguments and says how to find the parts of a block.

    The first argument of a block is always x; `mask_names` are those that its mask has had in different versions.
    """

    name: ClassVar[str] = ""
    mask_names: ClassVar[tuple[str, ...]] = ("attention_mask", "attn_mask")
    bias_name: ClassVar[str] = ""
    has_dropout: ClassVar[bool] = True  # in training
    true_is_kept: ClassVar[bool] = True  # what True means in a mask of bool
    harmless: ClassVar[frozenset[str]] = frozenset(
        {"use_cache", "position_ids", "cache_position", "return_dict", "output_hidden_states"}
    )

    @classmethod
    def anatomy(cls, module: nn.Module) -> Anatomy | None:
        """The parts of `module`, or None when it is built in another way.

        Raises:
            ValueError: it is of this form, but for a reason that the message gives.
        """
        raise NotImplementedError

    @classmethod
    def read(cls, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
        """What a call is about; None where it asks for more than y(x, mask, scores to add).

        `names`: those of the positional arguments, as argument_names gives them.
        """
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        x = given.pop(names[0], None)
        mask = score_bias = None
        for name, value in given.items():
            if value is None or value is False or name in cls.harmless:
                continue
            if name in cls.mask_names:
                mask = value
            elif name == cls.bias_name:
                score_bias = value
            else:
                return None
        return Call(x, mask, score_bias)  # what is no tensor is refused later


def register_family(cls: FamilyT) -> FamilyT:
    """Class decorator: adds a family under its name.

    Raises:
        ValueError: the name is empty or taken.
    """
    if not cls.name or FAMILIES.setdefault(cls.name, cls) is not cls:
        raise ValueError(f"{cls.__qualname__}: the name {cls.name!r} is empty or taken")
    return cls


def find_family(module: nn.Module) -> tuple[type[Family], Anatomy] | None:
    """The family that `module` belongs to by its structure, and its parts; None where it belongs to none.

    Raises:
        ValueError: it would belong to one, but for a reason that the message gives.
    """
    for family in FAMILIES.values():
        anatomy = family.anatomy(module)
        if anatomy is not None:
            _check_complete(module, anatomy)
            return family, anatomy
    return None


def argument_names(cls: type[nn.Module]) -> tuple[str, ...]:
    """Names of the positional arguments of a module's forward."""
    parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def part(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, or None."""
    found: nn.Module | None = module
    for key in path.split("."):
        found = None if found is None else found._modules.get(key)
    return found


def are(module: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...], *paths: str) -> bool:
    """Whether there is a module of that type, or of one of them, at every path."""
    return all(isinstance(part(module, path), kind) for path in paths)


def activation_name(activation: Any) -> str:
    """The key of tersor.ops.ACTIVATIONS for an activation function or module, found by what it computes.

    Raises:
        ValueError: it is none of them.
    """
    x = torch.linspace(-6, 6, 97)
    try:
        with torch.no_grad():
            y = activation(x)
    except Exception as error:
        raise ValueError(f"its activation can't be tried out: {type(error).__name__}: {error}") from error
    for name, function in _ACTIVATIONS.items():
        if isinstance(y, Tensor) and y.shape == x.shape and torch.allclose(y, function(x), rtol=1e-5, atol=2e-6):
            return name
    name = getattr(activation, "__name__", type(activation).__name__)
    raise ValueError(f"its activation {name} is none of {', '.join(_ACTIVATIONS)}")


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": F.silu,
}


def _check_complete(module: nn.Module, anatomy: Anatomy) -> None:
    """Raises ValueError where the block has tensors beside those of its known parts, or parts that don't fit."""
    known = {*anatomy.linears, *anatomy.norms, *(anatomy.qkv if len(anatomy.qkv) == 1 else ())}
    names = [*(name for name, _ in module.named_parameters()), *(name for name, _ in module.named_buffers())]
    if extra := [name for name in names if name.rpartition(".")[0] not in known and name != "packed"]:
        raise ValueError(f"it carries more than an encoder block: {', '.join(extra[:5])}")
    for path in anatomy.norms:
        norm: Any = part(module, path)
        if len(norm.normalized_shape) != 1 or not norm.elementwise_affine or norm.bias is None:
            raise ValueError(f"its {path} has no weight and bias per channel")

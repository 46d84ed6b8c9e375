"""How an encoder block stands in for a float block: as an instance of its class, with its tree and its attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from tersor.encoder.family import Anatomy, Family, argument_names
from tersor.encoder.plain import Plain, PlainBlock, plain_anatomy
from tersor.encoder.probe import PROBE, Found
from tersor.encoder.reference import PRODUCTS
from tersor.factorize.factored_linear import FactoredLinear
from tersor.nn.encoder_config import BlockConfig
from tersor.nn.encoder_parts import make_floats, make_parts
from tersor.nn.encoder_tree import Duplicate, copy_attributes, rebuilt

if TYPE_CHECKING:
    from tersor.nn.encoder_block import EncoderBlock

_CLASSES: dict[type[nn.Module], type[EncoderBlock]] = {}


@dataclass(frozen=True)
class Frame:
    """What a block stands in for.

    Attributes:
        family, anatomy: of the float block.
        names: the positional arguments of its forward.
        returns_tuple: its result is a tuple with one tensor.
        attributes: what the block has from it, beside children.
    """

    family: type[Family]
    anatomy: Anatomy
    names: tuple[str, ...]
    returns_tuple: bool
    attributes: tuple[str, ...]


def block_class(base: type[EncoderBlock], float_class: type[nn.Module]) -> type[EncoderBlock]:
    """EncoderBlock as a subclass of a float class, so that a model which looks for its blocks finds it."""
    if float_class not in _CLASSES:
        members = {
            "float_class": float_class,
            "registered_as": base,
            "__module__": base.__module__,
            "__doc__": base.__doc__,
        }
        _CLASSES[float_class] = type(base.__name__, (base, float_class), members)
    return _CLASSES[float_class]


def blank_block(base: type[EncoderBlock], float_class: type[nn.Module]) -> EncoderBlock:
    """A block without any state, for pickle."""
    cls = block_class(base, float_class)
    return cls.__new__(cls)


def look(module: nn.Module) -> Found | None:
    """What kind of encoder block `module` is, be it float or packed; raises ValueError like Probe.look."""
    frame = module.__dict__.get("_frame")
    if isinstance(frame, Frame):
        return Found(frame.family, frame.anatomy, frame.returns_tuple)
    return PROBE.look(module)


def stand_in(
    block: EncoderBlock,
    module: nn.Module,
    found: Found,
    duplicate: Duplicate = lambda value: value,
    hooks: bool = False,
) -> None:
    """Give `block` the class, the children and the attributes of a block that it takes the place of.

    `duplicate` is applied to attributes and to the hook tables of modules inside, which stay behind without `hooks`.
    """
    base = next(cls for cls in type(block).__mro__ if "kind" in cls.__dict__)
    float_class = getattr(module, "float_class", type(module))
    if old := block.__dict__.get("_frame"):
        for key in old.attributes:
            del block.__dict__[key]
    block.__class__ = block_class(base, float_class)
    make = make_parts(block, found.anatomy)
    children = {
        key: None if child is None else rebuilt(child, make, duplicate, hooks, key)
        for key, child in module._modules.items()
    }
    block._modules.clear()
    block._modules.update(children)
    before = {*block.__dict__, "_frame"}
    block._frame = Frame(found.family, found.anatomy, argument_names(float_class), found.returns_tuple, ())
    block.__dict__.pop("_hook_tables", None)
    copy_attributes(module, block, duplicate)
    attributes = tuple(key for key in block.__dict__ if key not in before)
    block._frame = Frame(found.family, found.anatomy, block._frame.names, found.returns_tuple, attributes)


def stand_alone(block: EncoderBlock, config: BlockConfig) -> None:
    """Let a block that takes no other's place be called like a PlainBlock."""
    plain = PlainBlock(
        config.hidden,
        config.heads,
        config.ffn,
        head_dim=config.head_dim,
        activation=config.activation,
        norm_first=config.norm_first,
        eps=(config.eps1, config.eps2),
        device="meta",
    )
    for product, paths in zip(PRODUCTS, (("query", "key", "value"), ("out",), ("up",), ("down",)), strict=True):
        for path, rank in zip(paths, config.products[product].ranks, strict=False):
            layer = getattr(plain, path)
            setattr(plain, path, FactoredLinear(layer.in_features, layer.out_features, rank, device="meta"))
    stand_in(block, plain, Found(Plain, plain_anatomy(plain), False))


def float_module(block: EncoderBlock, hooks: bool = False) -> nn.Module:
    """The float block with the dequantised weights; with `hooks`, it shares the hook tables inside."""
    made: Any = block.float_class.__new__(block.float_class)
    nn.Module.__init__(made)
    for key in block._frame.attributes:
        made.__dict__[key] = block.__dict__[key]
    for key, child in block._modules.items():
        made._modules[key] = None if child is None else rebuilt(child, make_floats, lambda value: value, hooks, key)
    made.training = block.training
    return made  # type: ignore[no-any-return]

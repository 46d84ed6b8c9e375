"""A whole encoder block in one native call: attention and feed-forward part, int8 products, residuals and norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tersor.encoder.plain import PlainBlock
from tersor.encoder.probe import Found
from tersor.nn.encoder_config import BlockConfig
from tersor.nn.encoder_convert import (
    canonical,
    from_converted_layers,
    from_float_weights,
    tensor_reason,
    weight_reason,
)
from tersor.nn.encoder_facts import BlockFacts
from tersor.nn.encoder_fit import clash
from tersor.nn.encoder_frame import Frame, blank_block, float_module, look, stand_alone, stand_in
from tersor.nn.encoder_fused import fused_block
from tersor.nn.encoder_integers import Integers
from tersor.nn.encoder_packed import pack_block, unpack_block
from tersor.nn.packed_layer import DTYPES
from tersor.nn.registry import register


@register
class EncoderBlock(BlockFacts):
    """Takes the place of a transformer's encoder block: Hugging Face BERT and its like, torch's own, and others.

    It is called as the float block is, and is an instance of its class. Padding that a mask speaks of costs no time;
    the rows of padding tokens come out as zeros. What the fused op has no form for is computed by the float block's own
    code with dequantised weights: training, masks that differ between queries, attention weights as an output, hooks
    inside the block. Gradients flow to the input through that path, too.

    A block that stands alone (from_config) is called as tersor.encoder.plain.PlainBlock is. docs/encoder.md has more.

    Raises (forward):
        TersorError: x has another dtype, shape or device, or no weights were loaded; the message names the block.
    """

    kind = "encoder_block"
    float_class: ClassVar[type[nn.Module]] = PlainBlock
    zeros_padding: ClassVar[bool] = True  # rows of padding come out as zeros
    _transient = frozenset({"_hook_tables"})
    _frame: Frame

    def __init__(self, config: Mapping[str, Any], device: torch.device | str | None = None) -> None:
        """A block without weights: use from_float, or load_state_dict afterwards."""
        nn.Module.__init__(self)
        self._settings = BlockConfig.parse(config)
        self._start_empty(DTYPES[self._settings.dtype], device)
        stand_alone(self, self._settings)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the float block's forward takes and returns."""
        frame = self._frame
        call = frame.family.read(frame.names, args, kwargs)
        y = None if call is None else fused_block(self, call, args, kwargs)
        if y is None:
            return self.float_forward(*args, **kwargs)
        return (y,) if frame.returns_tuple else y

    def float_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward of the float block, with the dequantised weights."""
        return self.float_class.forward(self, *args, **kwargs)

    @classmethod
    def from_float(
        cls,
        module: nn.Module,
        *,
        input_scales: Mapping[str, Tensor] | None = None,
        patterns: Mapping[str, str] | None = None,
    ) -> Self:
        """Quantises an encoder block, which is not changed; tersor.swap moves its hooks.

        Layers that are a FactoredLinear stay of low rank. Queries, keys and values become one product: of low rank
        where all three are and that is less work than the dense product, else dense.

        Args:
            module: a block of a family in tersor.encoder.
            input_scales: float32 [inputs] for products ("qkv", "out", "up", "down") that are to be smoothed.
            patterns: for products whose weight was pruned: how its zeros lie. The others are dense.

        Raises:
            ValueError: with reason_against(module), or when a weight holds NaN or infinity.
        """
        if (reason := cls.reason_against(module)) is not None:
            raise ValueError(reason)
        found = look(module)
        assert found is not None
        with torch.inference_mode(False), torch.no_grad():
            products = from_float_weights(module, found.anatomy, input_scales or {}, patterns or {})
            return cls._made(module, found, products)

    @classmethod
    def from_layers(cls, module: nn.Module, layers: Mapping[str, nn.Module]) -> Self:
        """Puts converted layers together to a block, with the integers that they have.

        Args:
            module: a float block, whose norms are taken.
            layers: what stands for its linear layers, by their dotted path below it: Int8Linear, SparseInt8Linear or
                LowRankInt8Linear. An nn.MultiheadAttention is quantised here.

        Raises:
            ValueError: it is no encoder block, or its layers can't be one; the message says why.
        """
        found = look(module)
        if found is None:
            raise ValueError(f"{type(module).__name__} is no encoder block of a known form")
        if (reason := tensor_reason(module, found.anatomy) or clash(cls, module)) is not None:
            raise ValueError(reason)
        with torch.inference_mode(False), torch.no_grad():
            return cls._made(module, found, from_converted_layers(module, found.anatomy, layers))

    @classmethod
    def _made(cls, module: nn.Module, found: Found, products: Mapping[str, Integers]) -> Self:
        config, tensors = canonical(module, found.anatomy, products)
        block = cls(config.plain(), "cpu")
        block._take_packed(block._pack_checked(tensors))
        stand_in(block, module, found)
        return block

    @classmethod
    def reason_against(cls, module: nn.Module) -> str | None:
        """Why `module` cannot become this layer, or None when it can."""
        if isinstance(module, EncoderBlock):
            return "is accelerated already"
        try:
            found = look(module)
        except ValueError as error:
            return str(error)
        if found is None:
            return f"{type(module).__name__} is no encoder block of a known form"
        return weight_reason(module, found.anatomy) or clash(cls, module)

    @classmethod
    def float_example(cls) -> tuple[nn.Module, Tensor]:
        """PlainBlock(hidden=24, heads=3, ffn=40) and x [2, 5, 24]."""
        return PlainBlock(24, 3, 40), torch.randn(2, 5, 24)

    def to_float(self) -> nn.Module:
        """A float block of the class that this block stands for, with the dequantised weights."""
        return float_module(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A block without weights, called as a PlainBlock is; raises ValueError when the config is not valid."""
        return cls(config, "cpu")

    # --- State.

    def _pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return pack_block(self._settings, tensors)

    def _unpack(self) -> dict[str, Tensor]:
        return unpack_block(self.packed, self._settings)

    def _stand_in(self, old: nn.Module, duplicate: Callable[[Any], Any]) -> None:
        found = look(old)
        if found is None:
            raise ValueError(f"{type(old).__name__} is no encoder block of a known form")
        stand_in(self, old, found, duplicate, hooks=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return blank_block, (EncoderBlock, self.float_class), self.__getstate__()

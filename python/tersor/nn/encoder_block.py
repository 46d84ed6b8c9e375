"""A whole encoder block in one native call: attention and feed-forward part, int8 products, residuals and norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from typing_extensions import Self

from tersor.encoder.family import Call
from tersor.encoder.masks import note_output, recognise
from tersor.encoder.plain import PlainBlock
from tersor.encoder.probe import Found
from tersor.errors import TersorError
from tersor.nn.encoder_config import BlockConfig
from tersor.nn.encoder_convert import (
    canonical,
    from_converted_layers,
    from_float_weights,
    tensor_reason,
    weight_reason,
)
from tersor.nn.encoder_frame import Frame, blank_block, clash, differences, float_module, look, stand_alone, stand_in
from tersor.nn.encoder_fused import block_with_grad, compiled_block, needs_float
from tersor.nn.encoder_integers import Integers
from tersor.nn.encoder_packed import inspect_block, pack_block, unpack_block
from tersor.nn.packed_layer import DTYPES, Expected, PackedLayer
from tersor.nn.registry import register
from tersor.ops import ENCODER_BLOCK


@register
class EncoderBlock(PackedLayer):
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
    _settings: BlockConfig
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
        y = None if call is None else self._fused(call, args, kwargs)
        if y is None:
            return self.float_forward(*args, **kwargs)
        return (y,) if frame.returns_tuple else y

    def float_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward of the float block, with the dequantised weights."""
        return self.float_class.forward(self, *args, **kwargs)

    def _fused(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """The result of the native op, or None where the call has no form for it."""
        x, mask, score_bias = call
        if (problem := self._input_problem(x)) is not None:
            raise TersorError(f"{self._label()}: {problem}")
        if needs_float(self, x):
            return None
        packed: Tensor = self._buffers["packed"]  # type: ignore[assignment]
        grad = torch.is_grad_enabled() and (x.requires_grad or (score_bias is not None and score_bias.requires_grad))
        if torch.compiler.is_dynamo_compiling():
            return None if grad else compiled_block(x, mask, score_bias, packed, self._frame.family.true_is_kept)
        found = recognise(x, mask, score_bias, self._frame.family.true_is_kept)
        if found is None or forward_ad._current_level >= 0:
            return None
        keep, scores = found
        if grad:
            return block_with_grad(self, call, keep, scores, args, kwargs)
        y: Tensor = ENCODER_BLOCK(x, keep, scores, packed)
        note_output(y)
        return y

    def _input_problem(self, x: object) -> str | None:
        hidden = self._settings.hidden
        if not self.has_weights:
            return "the block has no weights yet; load a state dict first"
        if not isinstance(x, Tensor):
            return f"expected a tensor [batch, tokens, {hidden}], got {type(x).__name__}"
        if x.is_nested or x.dim() == 2:
            return None
        if x.layout != torch.strided or x.device != self.packed.device:
            kind = str(x.layout).removeprefix("torch.")
            return f"expected a dense tensor on {self.packed.device}, got a {kind} one on {x.device}; convert it"
        if x.dtype not in DTYPES.values():
            return f"expected x in {', '.join(DTYPES)}, got {x.dtype}; convert it with x.float()"
        if x.dim() != 3 or x.shape[-1] != hidden:
            return f"expected x [batch, tokens, {hidden}], got {list(x.shape)}; the last dimension must be {hidden}"
        return None

    # --- Making and describing.

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

    def config(self) -> dict[str, Any]:
        """What from_config needs, JSON-able."""
        return {**self._settings.plain(), "dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A block without weights, called as a PlainBlock is; raises ValueError when the config is not valid."""
        return cls(config, "cpu")

    @classmethod
    def expected_tensors(cls, config: Mapping[str, Any]) -> Expected:
        """Names, dtypes and shapes of the tensors that `fill` takes; raises ValueError like from_config."""
        return BlockConfig.parse(config).expected()

    @classmethod
    def place_problem(cls, config: Mapping[str, Any], module: nn.Module) -> str | None:
        """Why a block of this valid config can't take the place of `module`, or None when it can."""
        return differences(BlockConfig.parse(config), module)

    @property
    def kernel(self) -> str:
        """The ids of the kernels of the four products; raises TersorError where there are no weights."""
        return ", ".join(dict.fromkeys(part["kernel"] for part in inspect_block(self.packed)["parts"]))

    def describe_products(self) -> tuple[str, ...]:
        """Every product in words: its name, extents (outputs x inputs) and kind."""
        return tuple(
            f"{name} {product.n}x{product.k} {product.kind}" for name, product in self._settings.products.items()
        )

    def operations(self, batch: int, tokens: int) -> int:
        """Operations on `batch` sequences of `tokens` tokens: two for each product of numbers with its addition."""
        weights = sum(product.stored for product in self._settings.products.values())
        attention = 2 * tokens * self._settings.heads * self._settings.head_dim  # q k^T and the mixing of v
        return 2 * batch * tokens * (weights + attention)

    @property
    def extents(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of the four products."""
        return {name: (product.n, product.k) for name, product in self._settings.products.items()}

    # --- State.

    @property
    def conversion(self) -> dict[str, Any]:
        """The settings of from_float that this block was made with."""
        canonical, products = self.canonical_tensors(), self._settings.products
        return {
            "input_scales": {name: canonical[f"{name}.input_scale"] for name, p in products.items() if p.smoothed},
            "patterns": {name: product.pattern for name, product in products.items() if product.pattern is not None},
        }

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

    def extra_repr(self) -> str:
        """What stands between the parentheses of repr, beside the modules inside."""
        settings = self._settings
        order = "pre-norm" if settings.norm_first else "post-norm"
        whole = ", ".join(f"{name}={product.kind}" for name, product in settings.products.items())
        return f"{settings.hidden}, heads={settings.heads}, ffn={settings.ffn}, {settings.activation}, {order}, {whole}"

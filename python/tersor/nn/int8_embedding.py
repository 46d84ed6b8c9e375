"""nn.Embedding and nn.EmbeddingBag with rows of 8 or 4 bits and a scale each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tersor.errors import TersorError
from tersor.nn.dequantized_weight import READ_ONLY
from tersor.nn.embedding_config import checked_embedding, embedding_problem, expected_embedding
from tersor.nn.embedding_packed import check_rows, pack_embedding, quantize_rows_4, unpack_embedding, widen
from tersor.nn.packed_layer import DTYPE_NAMES, DTYPES, Expected, PackedLayer
from tersor.nn.registry import register
from tersor.ops import EMBEDDING_BAG_S8, EMBEDDING_S8
from tersor.quantize import quantize_s8

_NOTHING = torch.empty(0)
_MODES = {"sum": 0, "mean": 1, "max": 2}


class EmbeddingLayer(PackedLayer):
    """A table of quantised rows. The state dict holds weight_q int8 [rows, dim], or weight_q4 uint8 [rows, bytes] with
    two values of 4 bits in each byte, and weight_scale float32 [rows]."""

    float_kind: ClassVar[type[nn.Module]]
    fields: ClassVar[tuple[str, ...]]
    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    bits: int

    def __init__(self, config: Mapping[str, Any], device: torch.device | str | None) -> None:
        nn.Module.__init__(self)
        for name, value in checked_embedding(config, self.fields).items():
            if name != "dtype":
                setattr(self, name, value)
        self.__dict__.update(max_norm=None, norm_type=2.0, scale_grad_by_freq=False, sparse=False)
        self._start_empty(DTYPES[config["dtype"]], device)

    def config(self) -> dict[str, Any]:
        """What from_config needs, JSON-able."""
        return {**{name: getattr(self, name) for name in self.fields}, "dtype": DTYPE_NAMES[self.dtype]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A layer without weights; raises ValueError when the config is not valid."""
        return cls._made(checked_embedding(config, cls.fields))

    @classmethod
    def _made(cls, config: Mapping[str, Any]) -> Self:
        layer = cls.__new__(cls)
        EmbeddingLayer.__init__(layer, config, "cpu")
        return layer

    @classmethod
    def expected_tensors(cls, config: Mapping[str, Any]) -> Expected:
        """Names, dtypes and shapes of the tensors that `fill` takes; raises ValueError like from_config."""
        return expected_embedding(checked_embedding(config, cls.fields))

    @classmethod
    def reason_against(cls, module: nn.Module) -> str | None:
        """Why `module` cannot become this layer, or None when it can."""
        return embedding_problem(module, cls.float_kind)

    @classmethod
    def place_problem(cls, config: Mapping[str, Any], module: nn.Module) -> str | None:
        """Why a layer of this valid config can't take the place of `module`, or None when it can."""
        if not isinstance(module, cls.float_kind):
            return f"is a {type(module).__name__} in the model, not an nn.{cls.float_kind.__name__}"
        for name in cls.fields:
            own = getattr(module, name, config[name])
            if name != "bits" and own != config[name]:
                return f"has {name} {config[name]} in the file and {own!r:.100} in the model"
        return None

    @classmethod
    def from_float(cls, module: nn.Module, *, bits: int = 8) -> Self:
        """Quantises the rows of a float layer to 8 or 4 bits; `module` is not changed.

        Raises:
            ValueError: with reason_against(module), or other bits.
        """
        if (reason := cls.reason_against(module)) is not None:
            raise ValueError(reason)
        weight: Tensor = module.weight  # type: ignore[assignment]
        config = {name: getattr(module, name) for name in cls.fields if name != "bits"}
        layer = cls.from_config({**config, "bits": bits, "dtype": DTYPE_NAMES[weight.dtype]})
        layer._take_packed(layer._pack({"weight": weight.detach()}))
        layer.training = module.training
        return layer

    def to_float(self) -> nn.Module:
        """The float layer with the values of the rows."""
        config = {name: getattr(self, name) for name in self.fields if name != "bits"}
        return self.float_kind(**config, _weight=self.weight, dtype=self.dtype).train(self.training)

    @property
    def kernel(self) -> str:
        """What looks rows up: plain code of the active instruction set."""
        from tersor import kernels

        return f"embedding_{kernels.active()}"

    @property
    def weight(self) -> Tensor:
        """The rows [num_embeddings, embedding_dim] as floats, computed when they are read."""
        return widen(self.canonical_tensors(), self.embedding_dim).to(self.dtype)

    @weight.setter
    def weight(self, value: Any) -> NoReturn:
        raise TersorError(f"{self._label()}: {READ_ONLY}")

    def _pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        if "weight" not in tensors:
            return pack_embedding(tensors, self.embedding_dim, self.bits)
        weight = check_rows(tensors["weight"], (self.num_embeddings, self.embedding_dim))
        if self.bits == 4:
            q, scale = quantize_rows_4(weight)
            return pack_embedding({"weight_q4": q, "weight_scale": scale}, self.embedding_dim, 4)
        q, scale = quantize_s8(weight)
        return pack_embedding({"weight_q": q, "weight_scale": scale}, self.embedding_dim, 8)

    def _unpack(self) -> dict[str, Tensor]:
        return unpack_embedding(self.packed, self.bits)

    def reset_parameters(self) -> None:
        """Raises TersorError: the layer takes its rows from a float layer or a state dict."""
        raise TersorError(f"{self._label()}: {READ_ONLY}")

    def _indices(self, input: Any) -> Tensor:
        """int64 [count], or TersorError: no weights, another class or dtype."""
        if not self.has_weights:
            raise TersorError(f"{self._label()}: the layer has no weights yet; load a state dict first")
        if not isinstance(input, Tensor) or input.dtype not in (torch.int64, torch.int32):
            got = input.dtype if isinstance(input, Tensor) else type(input).__name__
            raise TersorError(f"{self._label()}: expected indices in int64 or int32, got {got}")
        return input.reshape(-1).to(torch.int64)

    def extra_repr(self) -> str:
        """The extents and the bits of a value."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, weights=int{self.bits}"


@register
class Int8Embedding(EmbeddingLayer, nn.Embedding):
    """nn.Embedding with rows of 8 or 4 bits: a quarter or an eighth of the memory. For inference: no gradients."""

    kind = "int8_embedding"
    float_kind = nn.Embedding
    fields = ("num_embeddings", "embedding_dim", "padding_idx", "bits")

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bits: int = 8,
    ) -> None:
        """A layer without weights: use from_float, or load_state_dict afterwards. Arguments as in nn.Embedding."""
        values = (num_embeddings, embedding_dim, padding_idx, bits)
        config = dict(zip(self.fields, values, strict=True))
        EmbeddingLayer.__init__(self, {**config, "dtype": DTYPE_NAMES[dtype or torch.get_default_dtype()]}, device)

    def forward(self, input: Tensor) -> Tensor:
        """Indices of any shape to [*shape, embedding_dim]."""
        rows: Tensor = EMBEDDING_S8(self._indices(input), self.packed, self.embedding_dim)
        return rows.reshape(*input.shape, self.embedding_dim).to(self.dtype)

    @classmethod
    def float_example(cls) -> tuple[nn.Module, Tensor]:
        """nn.Embedding(50, 21, padding_idx=3) and indices [2, 5]."""
        return nn.Embedding(50, 21, padding_idx=3), torch.randint(0, 50, (2, 5))


@register
class Int8EmbeddingBag(EmbeddingLayer, nn.EmbeddingBag):
    """nn.EmbeddingBag with rows of 8 or 4 bits: the sum, mean or maximum of each bag. For inference: no gradients."""

    kind = "int8_embedding_bag"
    float_kind = nn.EmbeddingBag
    fields = ("num_embeddings", "embedding_dim", "padding_idx", "bits", "mode", "include_last_offset")
    mode: str
    include_last_offset: bool

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        mode: str = "mean",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bits: int = 8,
    ) -> None:
        """A layer without weights: use from_float, or load_state_dict afterwards; arguments as in nn.EmbeddingBag."""
        values = (num_embeddings, embedding_dim, padding_idx, bits, mode, include_last_offset)
        config = dict(zip(self.fields, values, strict=True))
        EmbeddingLayer.__init__(self, {**config, "dtype": DTYPE_NAMES[dtype or torch.get_default_dtype()]}, device)

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Bags [bags, n], or indices [n] with the offset of each bag, to [bags, embedding_dim].

        Raises:
            TersorError: the arguments do not fit together; the message says how.
        """
        indices = self._indices(input)
        if input.dim() == 2 and offsets is None:
            edges = torch.arange(input.shape[0] + 1, dtype=torch.int64) * input.shape[1]
        elif input.dim() == 1 and isinstance(offsets, Tensor) and offsets.dim() == 1:
            last = [] if self.include_last_offset else [torch.tensor([len(indices)])]
            edges = torch.cat([offsets.to(torch.int64), *last])
        else:
            raise TersorError(f"{self._label()}: expected bags [bags, n] alone, or indices [n] with offsets [bags]")
        weights = _NOTHING
        if per_sample_weights is not None:
            if self.mode != "sum" or per_sample_weights.shape != input.shape:
                raise TersorError(f"{self._label()}: per_sample_weights go with mode='sum' and have the input's shape")
            weights = per_sample_weights.reshape(-1).float()
        padding = -1 if self.padding_idx is None else self.padding_idx
        bags: Tensor = EMBEDDING_BAG_S8(
            indices, self.packed, edges, weights, self.embedding_dim, _MODES[self.mode], padding
        )
        return bags.to(self.dtype)

    @classmethod
    def float_example(cls) -> tuple[nn.Module, Tensor]:
        """nn.EmbeddingBag(50, 21, mode="sum", padding_idx=3) and bags [2, 5]."""
        return nn.EmbeddingBag(50, 21, mode="sum", padding_idx=3), torch.randint(0, 50, (2, 5))

"""What Int8Embedding and Int8EmbeddingBag share: a table of rows of 8 or 4 bits with a scale each."""

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
from tersor.quantize import quantize_s8


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

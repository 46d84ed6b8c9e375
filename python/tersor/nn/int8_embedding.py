"""nn.Embedding and nn.EmbeddingBag with rows of 8 or 4 bits and a scale each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tersor.errors import TersorError
from tersor.nn.embedding_layer import EmbeddingLayer
from tersor.nn.packed_layer import DTYPE_NAMES
from tersor.nn.registry import register
from tersor.ops import EMBEDDING_BAG_S8, EMBEDDING_S8

_NOTHING = torch.empty(0)
_MODES = {"sum": 0, "mean": 1, "max": 2}


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
        """Indices of any shape to [*shape, embedding_dim].

        Raises:
            TersorError: the indices are not int64 or int32.
            RuntimeError: one of them is not a row.
        """
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
            RuntimeError: an index is not a row.
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

"""Replacement layers. Each can be used alone: `Int8Linear.from_float(linear)`."""

from tersor.nn.codebook_linear import CodebookLinear
from tersor.nn.conv1d import Int8Conv1D, SparseConv1D, SparseInt8Conv1D
from tersor.nn.encoder_block import EncoderBlock
from tersor.nn.int8_conv import Int8Conv1d, Int8Conv2d
from tersor.nn.int8_embedding import Int8Embedding, Int8EmbeddingBag
from tersor.nn.int8_graph import Int8Graph
from tersor.nn.int8_linear import Int8Linear
from tersor.nn.lowrank_int8_linear import LowRankInt8Linear
from tersor.nn.lowrank_linear import LowRankLinear
from tersor.nn.packed_layer import PackedLayer
from tersor.nn.recurrent_cell import Int8GRUCell, Int8LSTMCell
from tersor.nn.recurrent_sequence import Int8GRU, Int8LSTM
from tersor.nn.registry import REGISTRY, register
from tersor.nn.sparse_int8_linear import SparseInt8Linear
from tersor.nn.sparse_linear import SparseLinear

__all__ = [
    "REGISTRY",
    "CodebookLinear",
    "EncoderBlock",
    "Int8Conv1D",
    "Int8Conv1d",
    "Int8Conv2d",
    "Int8Embedding",
    "Int8EmbeddingBag",
    "Int8GRU",
    "Int8GRUCell",
    "Int8Graph",
    "Int8LSTM",
    "Int8LSTMCell",
    "Int8Linear",
    "LowRankInt8Linear",
    "LowRankLinear",
    "PackedLayer",
    "SparseConv1D",
    "SparseInt8Conv1D",
    "SparseInt8Linear",
    "SparseLinear",
    "register",
]

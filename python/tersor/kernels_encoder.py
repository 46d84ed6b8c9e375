"""Encoder blocks on NumPy arrays; tersor.kernels has them by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tersor import _C
else:
    from tersor._native import core

    _C = core()


def pack_encoder_block(
    config: Mapping[str, Any],
    qkv: NDArray[np.uint8],
    out: NDArray[np.uint8],
    ffn_in: NDArray[np.uint8],
    ffn_out: NDArray[np.uint8],
    biases: Sequence[NDArray[np.float32] | None],
    norms: Sequence[NDArray[np.float32]],
) -> NDArray[np.uint8]:
    """Puts the packed weights of an encoder block, its biases and its LayerNorms into one block for `encoder_block`.

    Args:
        config: `hidden`, `heads`, `head_dim`, `ffn` (sizes), `norm_first` (pre-norm), `activation` (a name), `eps1` and
            `eps2` (of the LayerNorms), `scale` (of the attention scores). The width of attention, heads * head_dim,
            need not be `hidden`.
        qkv: a packed weight (`pack_s8`, `pack_sparse_s8`, `pack_lowrank_s8`) [3 * width, hidden]: the rows of Q of all
            heads, of K, of V.
        out: a packed weight [hidden, width].
        ffn_in: a packed weight [ffn, hidden].
        ffn_out: a packed weight [hidden, ffn].
        biases: of the four, float32 [n] or None.
        norms: gamma and beta of the first LayerNorm and of the second, float32 [hidden].

    Returns:
        uint8, a cache for this CPU.
    """
    return _C.pack_encoder_block(dict(config), qkv, out, ffn_in, ffn_out, biases, norms)


def inspect_encoder_block(packed: NDArray[np.uint8]) -> dict[str, Any]:
    """What a packed encoder block is: its configuration, `runnable`, and where its parts lie.

    `parts` are four dicts with `name`, `kind` ("dense", "sparse" or "low_rank"), `n`, `k`, `kernel`, `offset` and
    `bytes`: a packed weight is packed[offset : offset + bytes]. `floats` maps "qkv_bias", "gamma1" and so on to an
    offset in bytes and a number of float32 values.
    """
    return dict(_C.inspect_encoder_block(packed))


def encoder_block(
    x: NDArray[np.float32],
    packed: NDArray[np.uint8],
    keep: NDArray[np.uint8] | NDArray[np.bool_] | None = None,
    score_bias: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """One encoder block of a transformer: attention, feed-forward layers, residuals and LayerNorms (docs/encoder.md).

    Args:
        x: float32 [batch, tokens, hidden].
        packed: what `pack_encoder_block` returned.
        keep: bool or uint8 [batch, tokens], 0 where a token is padding, or None: every token is real. Real tokens may
            lie anywhere; padding costs nothing.
        score_bias: float32 [heads, tokens, tokens], added to the scaled scores of every sequence, or None.

    Returns:
        float32 [batch, tokens, hidden]; rows of padding are zeros.
    """
    y: NDArray[np.float32] = _C.encoder_block(x, packed, keep, score_bias)
    return y


def encoder_block_times(
    x: NDArray[np.float32], packed: NDArray[np.uint8], keep: NDArray[np.uint8] | NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """Where the time of one `encoder_block` call goes: the seconds that its first thread spent in each part.

    "qkv", "out", "ffn_in" and "ffn_out" are the products, each with the quantisation of its input and with its
    epilogue; "int16" rounds Q, K and V; then "attention", "norm" (both LayerNorms) and "rows" (reading x, writing y).
    """
    times: dict[str, float] = _C.encoder_block(x, packed, keep, None, True)
    return times

"""Code book weights as torch tensors: codes packed into bits for files, one uint8 [bytes] tensor for the kernels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tersor._native import core
from tersor.nn.packed_weight import room
from tersor.quantize.codebooks import Codes, decode


def code_bytes(columns: int, bits: int) -> int:
    """The bytes of a row of `columns` codes in a file."""
    return -(-columns * bits // 8)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [n, k] below 2^bits to uint8 [n, code_bytes(k, bits)]; the lowest bit of the first code is first."""
    rows, columns = codes.shape
    single = np.unpackbits(codes.numpy()[:, :, None], axis=2, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(single.reshape(rows, columns * bits), axis=1, bitorder="little"))


def unpack_bits(packed: Tensor, columns: int, bits: int) -> Tensor:
    """The inverse of pack_bits: uint8 [n, columns].

    Raises:
        ValueError: a bit behind the last code is not 0.
    """
    single = np.unpackbits(packed.contiguous().numpy(), axis=1, bitorder="little")
    if single[:, columns * bits :].any():
        raise ValueError("weight_codes: bits behind the last code of a row are not 0")
    single = single[:, : columns * bits].reshape(len(single), columns, bits)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    return torch.from_numpy((single * weights).sum(axis=2, dtype=np.uint8))


def pack_codes(codes: Codes, input_scale: Tensor | None = None) -> Tensor:
    """Codes for the kernels; the op multiplies its input by input_scale float32 [k] where one is given.

    Raises:
        tersor.TersorError: groups that are neither a whole row nor a multiple of 32 up to 65536, a value out of range.
    """
    native = core()
    group = 0 if codes.group_size >= codes.codes.shape[1] else codes.group_size
    arrays = tuple(t.contiguous().numpy() for t in (codes.codes, codes.table, codes.scale))
    with torch.inference_mode(False):
        packed = room(native.packed_bytes_lut4(*arrays, group))
    smoothing = None if input_scale is None else input_scale.contiguous().numpy()
    native.pack_lut4(*arrays, group, smoothing, packed.numpy())
    return packed


def unpack_codes(packed: Tensor) -> tuple[Codes, Tensor | None]:
    """What pack_codes was given. From 5 bits on, codes of equal entries come back as the first of them."""
    native, block = core(), packed.numpy()
    info = native.inspect_lut4(block)
    codes, table, scale = (torch.from_numpy(array) for array in native.unpack_lut4(block))
    smoothing = native.input_scale_lut4(block)
    return (
        Codes(codes, table, scale, info["bits"], info["group"] or info["k"]),
        None if smoothing is None else torch.from_numpy(smoothing),
    )


@torch.library.custom_op("tersor::dequantize_lut4", mutates_args=())
def dequantize_codes(packed: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    """The weight that the packed bytes stand for, `dtype` [out_features, in_features]."""
    codes, input_scale = unpack_codes(packed)
    weight = decode(codes)
    return (weight if input_scale is None else weight.mul_(input_scale)).to(dtype)


@dequantize_codes.register_fake
def _dequantize_fake(packed: Tensor, out_features: int, in_features: int, dtype: torch.dtype) -> Tensor:
    return packed.new_empty((out_features, in_features), dtype=dtype)

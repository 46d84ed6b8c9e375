"""Quantisation in plain PyTorch: weights to integers, ranges, samples and smoothing of inputs, without native code."""

from tersor.quantize.channel_range import ChannelRange
from tersor.quantize.row_sample import RowSample
from tersor.quantize.simulation import fake_quantize, linear_error
from tersor.quantize.smoothing import input_scale
from tersor.quantize.weight import ROW_MULTIPLE, block_rows, dequantize_s8, quantize_s8, quantize_s8_blocks

__all__ = [
    "ROW_MULTIPLE",
    "ChannelRange",
    "RowSample",
    "block_rows",
    "dequantize_s8",
    "fake_quantize",
    "input_scale",
    "linear_error",
    "quantize_s8",
    "quantize_s8_blocks",
]

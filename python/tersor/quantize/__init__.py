"""Quantisation in plain PyTorch: weights to integers, ranges and smoothing of inputs, without native code."""

from tersor.quantize.channel_range import ChannelRange
from tersor.quantize.smoothing import input_scale
from tersor.quantize.weight import ROW_MULTIPLE, block_rows, dequantize_s8, quantize_s8, quantize_s8_blocks

__all__ = [
    "ROW_MULTIPLE",
    "ChannelRange",
    "block_rows",
    "dequantize_s8",
    "input_scale",
    "quantize_s8",
    "quantize_s8_blocks",
]

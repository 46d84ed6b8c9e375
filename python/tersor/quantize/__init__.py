"""Quantisation in plain PyTorch: weights to integers, without native code."""

from tersor.quantize.weight import ROW_MULTIPLE, block_rows, dequantize_s8, quantize_s8, quantize_s8_blocks

__all__ = ["ROW_MULTIPLE", "block_rows", "dequantize_s8", "quantize_s8", "quantize_s8_blocks"]

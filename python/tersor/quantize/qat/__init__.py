"""Quantisation-aware training: layers that round as they will when they are quantised, and the way to get there."""

from tersor.quantize.qat.fake import FakeInput, FakeWeight
from tersor.quantize.qat.layers import QATConv2d, QATLinear, Scheme
from tersor.quantize.qat.trainer import QAT, QATResult

__all__ = ["QAT", "FakeInput", "FakeWeight", "QATConv2d", "QATLinear", "QATResult", "Scheme"]

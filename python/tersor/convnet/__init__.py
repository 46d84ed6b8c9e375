"""Convolutional networks on bytes: tracing, fusing, calibrating and replacing (docs/conv.md)."""

from tersor.convnet.convert import Converted, Graph, Part, quantize_convnet
from tersor.convnet.network import Int8Network

__all__ = ["Converted", "Graph", "Int8Network", "Part", "quantize_convnet"]

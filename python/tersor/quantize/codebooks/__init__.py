"""Code books, one file each: how a weight becomes codes into a table of integers. ``CODEBOOKS`` has them by name."""

from tersor.quantize.codebooks.affine import Affine
from tersor.quantize.codebooks.codes import Codes, decode, encode
from tersor.quantize.codebooks.exponential import Exponential, exponential_table
from tersor.quantize.codebooks.kmeans import KMeans
from tersor.quantize.codebooks.linear import Linear
from tersor.quantize.codebooks.log2 import Log2
from tersor.quantize.codebooks.nf4 import NormalFloat
from tersor.quantize.codebooks.registry import CODEBOOKS, CodeBook, make_codebook, register_codebook

__all__ = [
    "CODEBOOKS",
    "Affine",
    "CodeBook",
    "Codes",
    "Exponential",
    "KMeans",
    "Linear",
    "Log2",
    "NormalFloat",
    "decode",
    "encode",
    "exponential_table",
    "make_codebook",
    "register_codebook",
]

"""Low rank in plain PyTorch: layers as products of thinner ones, and how thin."""

from tersor.factorize.convolution import CONV_METHODS, factorize_convolution
from tersor.factorize.embedding import factorize_embedding
from tersor.factorize.factored_linear import FactoredLinear
from tersor.factorize.linear import Inputs, factorize_linear
from tersor.factorize.model import METHODS, FactorizedLayer, factorize
from tersor.factorize.rank import ROUND_TO, RankRule, break_even
from tersor.factorize.svd import truncated_svd

__all__ = [
    "CONV_METHODS",
    "METHODS",
    "ROUND_TO",
    "FactoredLinear",
    "FactorizedLayer",
    "Inputs",
    "RankRule",
    "break_even",
    "factorize",
    "factorize_convolution",
    "factorize_embedding",
    "factorize_linear",
    "truncated_svd",
]

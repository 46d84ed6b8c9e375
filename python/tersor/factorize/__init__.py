"""Low rank in plain PyTorch: weights as products of thin ones."""

from tersor.factorize.factored_linear import FactoredLinear
from tersor.factorize.svd import truncated_svd

__all__ = ["FactoredLinear", "truncated_svd"]

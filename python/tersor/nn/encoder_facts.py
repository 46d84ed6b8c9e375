"""What an encoder block says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tersor.nn.encoder_config import BlockConfig
from tersor.nn.encoder_fit import differences
from tersor.nn.encoder_packed import inspect_block
from tersor.nn.packed_layer import Expected, PackedLayer


class BlockFacts(PackedLayer):
    """Configuration, extents, kernels and settings of a block."""

    _settings: BlockConfig

    def config(self) -> dict[str, Any]:
        """What from_config needs, JSON-able."""
        return {**self._settings.plain(), "dtype": str(self.dtype).removeprefix("torch.")}

    @classmethod
    def expected_tensors(cls, config: Mapping[str, Any]) -> Expected:
        """Names, dtypes and shapes of the tensors that `fill` takes; raises ValueError like from_config."""
        return BlockConfig.parse(config).expected()

    @classmethod
    def place_problem(cls, config: Mapping[str, Any], module: nn.Module) -> str | None:
        """Why a block of this valid config can't take the place of `module`, or None when it can."""
        return differences(BlockConfig.parse(config), module)

    @property
    def kernel(self) -> str:
        """The ids of the kernels of the four products; raises TersorError where there are no weights."""
        return ", ".join(dict.fromkeys(part["kernel"] for part in inspect_block(self.packed)["parts"]))

    def describe_products(self) -> tuple[str, ...]:
        """Every product in words: its name, extents (outputs x inputs) and kind."""
        return tuple(
            f"{name} {product.n}x{product.k} {product.kind}" for name, product in self._settings.products.items()
        )

    def operations(self, batch: int, tokens: int) -> int:
        """Operations on `batch` sequences of `tokens` tokens: two for each product of numbers with its addition."""
        weights = sum(product.stored for product in self._settings.products.values())
        attention = 2 * tokens * self._settings.heads * self._settings.head_dim  # q k^T and the mixing of v
        return 2 * batch * tokens * (weights + attention)

    @property
    def extents(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of the four products."""
        return {name: (product.n, product.k) for name, product in self._settings.products.items()}

    @property
    def stored(self) -> dict[str, int]:
        """How many weights each of the four products is multiplied by."""
        return {name: product.stored for name, product in self._settings.products.items()}

    @property
    def conversion(self) -> dict[str, Any]:
        """The settings of from_float that this block was made with."""
        canonical, products = self.canonical_tensors(), self._settings.products
        return {
            "input_scales": {name: canonical[f"{name}.input_scale"] for name, p in products.items() if p.smoothed},
            "patterns": {name: product.pattern for name, product in products.items() if product.pattern is not None},
        }

    def extra_repr(self) -> str:
        """What stands between the parentheses of repr, beside the modules inside."""
        settings = self._settings
        order = "pre-norm" if settings.norm_first else "post-norm"
        whole = ", ".join(f"{name}={product.kind}" for name, product in settings.products.items())
        return f"{settings.hidden}, heads={settings.heads}, ffn={settings.ffn}, {settings.activation}, {order}, {whole}"

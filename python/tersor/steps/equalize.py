"""The step that makes channels equally large on both sides of neighbouring layers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from tersor.errors import RecipeError
from tersor.recipe import Step, register_step

if TYPE_CHECKING:
    from tersor.pipeline import Run


@register_step
@dataclasses.dataclass(frozen=True)
class Equalize(Step):
    """Cross-layer equalisation of the selected layers, before they are quantised. The model computes what it did.

    It helps where one scale serves many channels, such as groups of weights; scales per row don't need it.

    Args:
        rounds: over all pairs of layers.

    Source: Nagel et al., ICCV 2019 (arXiv 1906.04721), section 4.1.
    """

    name: ClassVar[str] = "equalize"
    lasting: ClassVar[bool] = False

    rounds: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.rounds) is not int or not 1 <= self.rounds <= 1000:
            raise RecipeError(f"step 'equalize': rounds = {self.rounds!r} is not a whole number from 1 to 1000")

    def apply(self, run: Run) -> None:
        """Change the weights of ``run.model``.

        Raises:
            SwapError: torch.fx can't trace the model.
        """
        from tersor.quantize.equalize import equalize

        pairs = equalize(run.model, rounds=self.rounds, selected=run.selected)
        worst = max((pair.before for pair in pairs), default=1.0)
        left = max((pair.after for pair in pairs), default=1.0)
        run.notes.append(
            f"equalised {len(pairs)} pairs of layers: the ranges of channels differ by {left:.3g}, not {worst:.3g}"
        )

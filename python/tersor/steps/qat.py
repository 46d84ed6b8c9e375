"""The step that trains a model with the rounding that it will have."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from tersor.errors import RecipeError
from tersor.quantize.codebooks import CODEBOOKS
from tersor.quantize.observers import OBSERVERS
from tersor.recipe import Step, register_step
from tersor.steps.quantize import GROUP_SIZES, WEIGHTS, Quantize

if TYPE_CHECKING:
    from tersor.pipeline import Run


@register_step
@dataclasses.dataclass(frozen=True)
class QAT(Step):
    """Train linear layers and convolutions with rounded weights and inputs, then run the linear ones on these integers.

    Convolutions and the batch norms behind them become convolutions with rounded weights: float ones, or with
    ``force=True`` and 8 bits ones on the integers.

    Args:
        weights, codebook, group_size: as in Quantize.
        activations: ``"dynamic"`` or ``"static"``, 8 bits, as in Quantize.
        observer: of static inputs during the first part of the training.
        steps: ``"learned"``: the steps between integers are trained, too (LSQ); ``"fixed"``: they are fitted once.
        epochs, learning_rate: of the training on the train data, with AdamW.
        observe: the part of the training after which static ranges stay.
        norms: the part after which the statistics of batch norms stay.
        loss: what training makes small, as in Prune: ``"match"`` or ``"model"``.

    Sources: Jacob et al., CVPR 2018 (arXiv 1712.05877); Esser et al., Learned step size quantization, ICLR 2020 (arXiv
    1902.08153).
    """

    name: ClassVar[str] = "qat"
    storable: ClassVar[bool] = False
    settles: ClassVar[bool] = True

    weights: str = dataclasses.field(default="int8", metadata={"choices": WEIGHTS})
    activations: Literal["dynamic", "static"] = dataclasses.field(
        default="dynamic", metadata={"choices": ("dynamic", "static")}
    )
    codebook: str = dataclasses.field(default="linear", metadata={"choices": CODEBOOKS})
    group_size: int | None = dataclasses.field(default=None, metadata={"choices": GROUP_SIZES})
    observer: str = dataclasses.field(default="moving_average", metadata={"choices": OBSERVERS})
    steps: Literal["learned", "fixed"] = dataclasses.field(
        default="learned", metadata={"choices": ("learned", "fixed")}
    )
    epochs: int = 1
    learning_rate: float = dataclasses.field(default=1e-4, metadata={"range": (1e-9, 1.0)})
    observe: float = dataclasses.field(default=0.2, metadata={"range": (0.0, 1.0)})
    norms: float = dataclasses.field(default=0.6, metadata={"range": (0.0, 1.0)})
    loss: Literal["match", "model"] = dataclasses.field(default="match", metadata={"choices": ("match", "model")})

    def __post_init__(self) -> None:
        super().__post_init__()
        most = CODEBOOKS[self.codebook].most_bits
        if self.bits > most:
            raise RecipeError(f"step 'qat': codebook = {self.codebook!r} has at most {most} bits")
        if type(self.epochs) is not int or not 1 <= self.epochs <= 1_000_000:
            raise RecipeError(f"step 'qat': epochs = {self.epochs!r} is not a whole number from 1 to 1000000")

    @property
    def bits(self) -> int:
        """Of a weight."""
        return int(self.weights[3:])

    def uses(self) -> frozenset[str]:
        """Train data, and calibration data for the first ranges of static inputs."""
        return frozenset({"train", "calibration"} if self.activations == "static" else {"train"})

    def reason_against(self, before: Sequence[Step]) -> str | None:
        """A model is quantised once."""
        quantised = any(isinstance(step, QAT | Quantize) for step in before)
        return "the model is quantised already" if quantised else None

    def apply(self, run: Run) -> None:
        """Train ``run.model``; its linear layers are replaced at the end of the recipe.

        Raises:
            RecipeError: no train data.
            TrainError: the data are not usable.
            SwapError: no layer is selected.
        """
        from tersor.qat_conversion import train_quantized

        train_quantized(run, self)

"""The step that runs layers on small integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from tersor.errors import RecipeError
from tersor.quantize.codebooks import CODEBOOKS
from tersor.quantize.corrections import CORRECTIONS
from tersor.quantize.observers import OBSERVERS
from tersor.recipe import Step, register_step

WEIGHTS = tuple(f"int{bits}" for bits in range(2, 9))
GROUP_SIZES = (None, 32, 64, 128)


@register_step
@dataclasses.dataclass(frozen=True)
class Quantize(Step):
    """Run linear layers on integers of 8 bits or less.

    Args:
        weights: ``"int8"`` to ``"int2"``. 8 bits with neither groups nor a code book of their own are symmetric, one
            scale per output channel, rounded to nearest; everything else runs in a CodebookLinear.
        activations: ``"dynamic"``: 8-bit, asymmetric, one range per row (token), measured on the fly;
            ``"static"``: one range per layer, chosen by the observer over calibration data.
        smooth: in [0, 1], how much of what is hard to quantise moves from the input of a layer into its weight, by a
            scale per input channel (tersor.quantize.smoothing), in the layers whose error that reduces. It needs to
            see inputs: calibration data, else the example inputs, else there is no smoothing. 0 turns it off.
        codebook: which integers the codes stand for, a name in ``tersor.quantize.codebooks.CODEBOOKS``.
        group_size: 32, 64 or 128 weights of a row under one scale; None: the whole row.
        observer: of static activations, a name in ``tersor.quantize.observers.OBSERVERS``.
        corrections: names in ``tersor.quantize.corrections.CORRECTIONS``, such as ``("smoothing", "gptq")``, each
            kept in the layers whose error it reduces. They look at calibration data, else at the example inputs.
        average_bits: of the weights of all layers together; each layer then gets 2 to 8 bits, at most those of
            ``weights``, so that the sum of errors is small. None: all get those of ``weights``.
        embeddings: 8 or 4: tables of ``nn.Embedding`` and ``nn.EmbeddingBag`` are kept in so many bits, with a scale
            for each row, where looking them up is measured as fast; 0 leaves them as they are.
        samples: stop looking at calibration data after so many examples; None looks at all.
        blocks: run encoder blocks of known forms in one call each (tersor.nn.EncoderBlock), where that is faster still.

    Sources: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference, CVPR 2018; Xiao et al., SmoothQuant, 2022 (arXiv 2211.10438) for ``smooth``; docs/quantization.md for the
    others.
    """

    name: ClassVar[str] = "quantize"
    edits: ClassVar[bool] = False

    weights: str = dataclasses.field(default="int8", metadata={"choices": WEIGHTS})
    activations: Literal["dynamic", "static"] = dataclasses.field(
        default="dynamic", metadata={"choices": ("dynamic", "static")}
    )
    smooth: float = dataclasses.field(default=0.5, metadata={"range": (0.0, 1.0)})
    codebook: str = dataclasses.field(default="linear", metadata={"choices": CODEBOOKS})
    group_size: int | None = dataclasses.field(default=None, metadata={"choices": GROUP_SIZES})
    observer: str = dataclasses.field(default="minmax", metadata={"choices": OBSERVERS})
    corrections: Sequence[str] = ()
    average_bits: float | None = None
    samples: int | None = None
    embeddings: int = dataclasses.field(default=0, metadata={"choices": (0, 4, 8)})
    blocks: bool = dataclasses.field(default=True, metadata={"choices": (True, False)})

    def __post_init__(self) -> None:
        super().__post_init__()
        names = () if isinstance(self.corrections, str) else tuple(self.corrections)
        if isinstance(self.corrections, str) or not set(names) <= set(CORRECTIONS):
            raise RecipeError(
                f"step 'quantize': corrections = {self.corrections!r} is not a list of names among "
                f"{', '.join(sorted(CORRECTIONS))}"
            )
        object.__setattr__(self, "corrections", names)
        if "range" in names and (self.activations != "static" or self.observer != "minmax"):
            raise RecipeError(
                "step 'quantize': the correction 'range' narrows the ranges of activations = 'static' and observer = "
                f"'minmax', got {self.activations!r} and {self.observer!r}"
            )
        most = CODEBOOKS[self.codebook].most_bits
        if self.bits > most:
            raise RecipeError(f"step 'quantize': codebook = {self.codebook!r} has at most {most} bits")
        average = self.average_bits
        if average is not None:
            if isinstance(average, bool) or not isinstance(average, int | float) or not 2 <= average <= self.bits:
                raise RecipeError(
                    f"step 'quantize': average_bits = {average!r} is not a number from 2 to the {self.bits} of weights"
                )
            object.__setattr__(self, "average_bits", float(average))
        if self.samples is not None and (type(self.samples) is not int or self.samples < 1):
            raise RecipeError(f"step 'quantize': samples = {self.samples!r} is not a positive whole number")

    @property
    def bits(self) -> int:
        """Of a weight, at most."""
        return int(self.weights[3:])

    @property
    def nearest_int8(self) -> bool:
        """The weights are rounded to the nearest of 255 equal steps per channel, and nothing else is done to them."""
        plain = self.weights == "int8" and self.codebook == "linear" and self.group_size is None
        return plain and not self.corrections and self.average_bits is None

    def uses(self) -> frozenset[str]:
        """Calibration data, for static ranges, smoothing and corrections."""
        looks = self.activations == "static" or self.smooth > 0 or self.corrections or self.average_bits is not None
        return frozenset({"calibration"} if looks else ())

    def reason_against(self, before: Sequence[Step]) -> str | None:
        """A model is quantised once."""
        return "the model is quantised already" if any(isinstance(step, Quantize) for step in before) else None

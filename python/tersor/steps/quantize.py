"""The step that runs layers on small integers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from tersor.recipe import Step, register_step


@register_step
@dataclasses.dataclass(frozen=True)
class Quantize(Step):
    """Run linear layers on 8-bit integers.

    Args:
        weights: ``"int8"``: symmetric, one scale per output channel, round to nearest.
        activations: ``"dynamic"``: 8-bit, asymmetric, one range per row (token), measured on the fly;
            ``"static"``: one range per layer, the minimum and maximum seen over calibration data.
        smooth: in [0, 1], how much of what is hard to quantise moves from the input of a layer into its weight, by a
            scale per input channel (tersor.quantize.smoothing), in the layers whose error that reduces. It needs to
            see inputs: calibration data, else the example inputs, else there is no smoothing. 0 turns it off.

    Sources: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference, CVPR 2018; Xiao et al., SmoothQuant, 2022 (arXiv 2211.10438) for ``smooth``.
    """

    name: ClassVar[str] = "quantize"
    edits: ClassVar[bool] = False

    weights: Literal["int8"] = dataclasses.field(default="int8", metadata={"choices": ("int8",)})
    activations: Literal["dynamic", "static"] = dataclasses.field(
        default="dynamic", metadata={"choices": ("dynamic", "static")}
    )
    smooth: float = dataclasses.field(default=0.5, metadata={"range": (0.0, 1.0)})

    def uses(self) -> frozenset[str]:
        """Calibration data, for static ranges and for smoothing."""
        return frozenset({"calibration"} if self.activations == "static" or self.smooth > 0 else ())

    def reason_against(self, before: Sequence[Step]) -> str | None:
        """A model is quantised once."""
        return "the model is quantised already" if any(isinstance(step, Quantize) for step in before) else None

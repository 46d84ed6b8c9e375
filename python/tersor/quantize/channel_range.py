"""An observer: the range of every channel of what a layer was given, in two numbers a channel."""

from __future__ import annotations

import torch
from torch import Tensor


class ChannelRange:
    """Minimum and maximum of each channel, 0 included, over any number of inputs.

    Attributes:
        low, high: float32 [channels]; low <= 0 <= high, or NaN or infinite where an input was.
    """

    def __init__(self, channels: int) -> None:
        self.low = torch.zeros(channels, device="cpu")
        self.high = torch.zeros(channels, device="cpu")

    def add(self, x: Tensor) -> None:
        """Takes an input [..., channels] of any floating dtype in."""
        if x.numel():
            low, high = torch.aminmax(x.detach().reshape(-1, x.shape[-1]), dim=0)  # [channels] each
            self.low = torch.minimum(self.low, low.to(torch.float32))
            self.high = torch.maximum(self.high, high.to(torch.float32))

    @property
    def is_finite(self) -> bool:
        """False once an input held NaN or infinity."""
        return bool((torch.isfinite(self.low) & torch.isfinite(self.high)).all())

    def peak(self) -> Tensor:
        """The largest absolute value of each channel, float32 [channels]."""
        return torch.maximum(self.high, -self.low)

    def x_range(self, input_scale: Tensor | None = None) -> tuple[float, int]:
        """Scale and zero point that map the range of all channels to 0..255, zero exactly.

        Args:
            input_scale: float32 [channels] > 0: the range of the inputs times it. Rounding keeps the order, so this is
                exactly the range that observing the products would give.

        A layer that saw only zeros gets scale 1.
        """
        low = self.low if input_scale is None else self.low * input_scale
        high = self.high if input_scale is None else self.high * input_scale
        least, most = float(low.min()), float(high.max())
        scale = (most - least) / 255
        if scale == 0:
            return 1.0, 0
        return scale, min(255, max(0, round(-least / scale)))

"""Linear and convolution layers that compute as their quantised selves will, while they are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor.quantize.codebooks import CodeBook, Codes, make_codebook
from tersor.quantize.qat.fake import FakeInput, FakeWeight


@dataclass(frozen=True)
class Scheme:
    """How layers are quantised.

    Attributes:
        bits, codebook, group_size: of weights, see CodeBook.fit.
        activations: ``"dynamic"``, ``"static"``, or None for float inputs.
        activation_bits: of inputs; the kernels take 8.
        observer: of static inputs, until it is frozen.
        learned: steps are trained (LSQ); otherwise they stay as they were fitted.
    """

    bits: int = 8
    codebook: str = "linear"
    group_size: int | None = None
    activations: str | None = "dynamic"
    activation_bits: int = 8
    observer: str = "moving_average"
    learned: bool = True

    def fake_input(self, pictures: bool = False) -> FakeInput | None:
        """A new one, for a linear layer or a convolution."""
        if self.activations is None:
            return None
        return FakeInput(self.activations, self.activation_bits, self.observer, self.learned, pictures)

    def fake_weight(self, weight: Tensor) -> FakeWeight:
        """A new one, fitted to a weight ``[out, in]``."""
        book: CodeBook = make_codebook(self.codebook)
        return FakeWeight(weight.detach().to(torch.float32), book, self.bits, self.group_size, self.learned)


class QATLinear(nn.Linear):
    """nn.Linear with fake quantisation of weight and input. The parameters are those of the layer it stands for."""

    fake_weight: FakeWeight
    fake_input: FakeInput | None

    @classmethod
    def of(cls, layer: nn.Linear, scheme: Scheme) -> QATLinear:
        """Stands for a layer and shares its parameters."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.in_features, made.out_features = layer.in_features, layer.out_features
        made.weight = layer.weight
        made.register_parameter("bias", layer._parameters["bias"])
        made.fake_weight, made.fake_input = scheme.fake_weight(layer.weight), scheme.fake_input()
        return made.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        x = input if self.fake_input is None else self.fake_input(input)
        return functional.linear(x, self.fake_weight(self.weight), self.bias)

    def codes(self) -> Codes:
        """The integers of the weight."""
        return self.fake_weight.codes(self.weight)

    def to_float(self) -> nn.Linear:
        """A plain layer with the rounded weight."""
        made = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        with torch.no_grad():
            made.weight = nn.Parameter(self.fake_weight(self.weight).clone())
            made.bias = None if self.bias is None else nn.Parameter(self.bias.detach().clone())
        made.training = self.training
        return made


class QATConv2d(nn.Conv2d):
    """nn.Conv2d, and the batch norm that follows it, with fake quantisation of the folded weight and of the input.

    The weight is rounded as it will be after folding, multiplied by ``gamma / sigma`` of the running statistics; the
    output is divided by that again for the batch norm, which trains as ever until its statistics are frozen. A
    frozen one and one in eval mode computes what the folded convolution will.

    Source: Krishnamoorthi, 2018 (arXiv 1806.08342), section 3.2.2; the division is that of torch.ao's ConvBn2d.
    """

    fake_weight: FakeWeight
    fake_input: FakeInput | None
    norm: nn.BatchNorm2d | None
    norm_frozen: bool

    @classmethod
    def of(cls, layer: nn.Conv2d, scheme: Scheme, norm: nn.BatchNorm2d | None = None) -> QATConv2d:
        """Stands for a layer, and for the batch norm behind it, and shares their parameters."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed"):
            setattr(made, name, getattr(layer, name))
        for name in ("output_padding", "groups", "padding_mode", "_reversed_padding_repeated_twice"):
            setattr(made, name, getattr(layer, name))
        made.weight, made.norm = layer.weight, norm
        made.register_parameter("bias", layer._parameters["bias"])
        made.norm_frozen = False
        made.fake_input = scheme.fake_input(pictures=True)
        made.fake_weight = scheme.fake_weight(made._folded().flatten(1))
        return made.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """``[n, in, height, width]`` to ``[n, out, ...]``."""
        x: Tensor = input if self.fake_input is None else self.fake_input(input)
        weight: Tensor = self.fake_weight(self._folded().flatten(1)).view_as(self.weight)
        y: Tensor
        if self.norm is None:
            y = self._conv_forward(x, weight, self.bias)
            return y
        factor = self._factor()
        if self.norm_frozen or not self.training:
            y = self._conv_forward(x, weight, self._folded_bias(factor))
            return y
        factor = torch.where(factor == 0, torch.ones_like(factor), factor)
        y = self._conv_forward(x, weight, None) / factor[:, None, None]
        y = self.norm(y if self.bias is None else y + self.bias[:, None, None])
        return y

    def codes(self) -> Codes:
        """The integers of the folded weight ``[out, in * height * width]``."""
        return self.fake_weight.codes(self._folded().flatten(1))

    def to_float(self) -> nn.Conv2d:
        """A plain convolution with the rounded, folded weight; the batch norm is part of it."""
        settings: dict[str, Any] = {name: getattr(self, name) for name in ("stride", "padding", "dilation", "groups")}
        settings["kernel_size"] = self.kernel_size
        made = nn.Conv2d(self.in_channels, self.out_channels, **settings, padding_mode=self.padding_mode)
        with torch.no_grad():
            made.weight.copy_(self.fake_weight(self._folded().flatten(1)).view_as(self.weight))
            bias = self.bias if self.norm is None else self._folded_bias(self._factor())
            made.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        made.training = self.training
        return made

    def _factor(self) -> Tensor:
        assert self.norm is not None
        assert self.norm.running_var is not None
        spread = torch.sqrt(self.norm.running_var + self.norm.eps)
        gamma = torch.ones_like(spread) if self.norm.weight is None else self.norm.weight
        return gamma / spread

    def _folded(self) -> Tensor:
        return self.weight if self.norm is None else self.weight * self._factor()[:, None, None, None]

    def _folded_bias(self, factor: Tensor) -> Tensor:
        assert self.norm is not None
        assert self.norm.running_mean is not None
        own = -self.norm.running_mean if self.bias is None else self.bias - self.norm.running_mean
        shifted = own * factor
        return shifted if self.norm.bias is None else shifted + self.norm.bias

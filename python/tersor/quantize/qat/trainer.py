"""Quantisation-aware training in one's own loop: prepare, step, finish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tersor import modules, observe, processes
from tersor.errors import SwapError
from tersor.modules import find_candidates
from tersor.nn import Int8Conv2d
from tersor.nn.coded import layer_from_codes
from tersor.quantize.codebooks.codes import values
from tersor.quantize.qat.fake import FakeInput
from tersor.quantize.qat.layers import QATConv2d, QATLinear, Scheme
from tersor.quantize.qat.norms import conv_norm_pairs
from tersor.selection import matches
from tersor.structure import replace_module

KERNEL_BITS = 8
"""Of the inputs that the kernels take."""


@dataclass(frozen=True)
class QATResult:
    """What became of the layers.

    Attributes:
        accelerated: layers that run on the very integers they were trained with.
        floats: float layers with rounded weights, and why there is no accelerated one.
    """

    accelerated: tuple[str, ...]
    floats: dict[str, str]


class QAT:
    """Trains a model with the rounding that it will have.

    Replaces linear and convolution layers by ones that round their weights and inputs, with gradients straight
    through; batch norms become part of the convolutions before them. Parameters stay the same objects; learned steps
    are new ones, so make the optimiser afterwards. Call :meth:`step` after every optimiser step and :meth:`finish` at
    the end.

    Args:
        model: changed in place.
        scheme: how layers are quantised.
        steps: optimiser steps that are planned; None never freezes anything before the end.
        observe: the part of them after which static ranges stay (their steps are learned from then on).
        norms: the part after which the statistics of batch norms stay.
        include, exclude: shell wildcards on names; layers with tied weights are left alone.
        calibration: inputs to take the first static ranges from; without it they come from the first batches.

    Raises:
        SwapError: no layer is selected, or the model failed on a calibration batch.
        ValueError: the code book, observer or another setting is not known.
    """

    def __init__(
        self,
        model: nn.Module,
        scheme: Scheme | None = None,
        *,
        steps: int | None = None,
        observe: float = 0.2,
        norms: float = 0.6,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        calibration: Iterable[Any] = (),
    ) -> None:
        self.model, self.scheme = model, scheme or Scheme()
        self.steps, self.count = steps, 0
        self._observe, self._norms = observe, norms
        self._absorbed = conv_norm_pairs(model)
        self.layers: dict[str, QATLinear | QATConv2d] = {}
        self._prepare(include, exclude)
        processes.share(calibration, lambda index, batch: _run(model, batch, index))
        self._follow_ranges()

    def step(self) -> None:
        """An optimiser step was made. In a process group all have to call it: ranges follow what all of them saw."""
        self.count += 1
        self._follow_ranges()
        self._follow()

    @property
    def done(self) -> bool:
        """Whether everything is frozen, see tersor.training.Companion."""
        return self.steps is None or self.count >= max(self._freezes(self.steps))

    def state_dict(self) -> dict[str, Any]:
        """The number of steps made, and what observers that still observe saw. Ranges are part of the model."""
        observers = {name: fake.observer.state_dict() for name, fake in self._static().items() if fake.observing}
        return {"count": self.count, "observers": observers}

    def load_state_dict(self, state: Any) -> None:
        """Go on after as many steps, with what was observed until then; ranges that were frozen stay as they are."""
        self.count = int(state["count"])
        for name, fake in self._static().items():
            fake.observing = name in state["observers"]
            if fake.observing:
                fake.observer.load_state_dict(state["observers"][name])
        self._follow()

    def _static(self) -> dict[str, FakeInput]:
        inputs = {name: layer.fake_input for name, layer in self.layers.items()}
        return {name: fake for name, fake in inputs.items() if fake is not None and fake.mode == "static"}

    def _follow_ranges(self) -> None:
        """Ranges of all that the processes have observed."""
        inputs = [fake for fake in self._static().values() if fake.observing]
        if inputs:
            parts = processes.gather([one.fresh for one in inputs])
            for one, seen in zip(inputs, zip(*parts, strict=True), strict=True):
                one.follow(seen)

    def _freezes(self, steps: int) -> tuple[int, int]:
        return max(round(self._observe * steps), 1), max(round(self._norms * steps), 1)

    def _follow(self) -> None:
        if self.steps is None:
            return
        ranges, norms = self._freezes(self.steps)
        if self.count >= ranges:
            self.freeze_observers()
        if self.count >= norms:
            self.freeze_norms()

    def freeze_observers(self) -> None:
        """Static ranges stay from here on."""
        for layer in self.layers.values():
            if layer.fake_input is not None:
                layer.fake_input.freeze()

    def freeze_norms(self) -> None:
        """The statistics of folded batch norms stay from here on."""
        for layer in self.layers.values():
            if isinstance(layer, QATConv2d):
                layer.norm_frozen = True

    def finish(self) -> QATResult:
        """Put the final layers in place.

        A linear layer becomes an Int8Linear or a CodebookLinear, an 8-bit convolution an Int8Conv2d, with exactly the
        integers that it was trained with; where no kernel takes them, a float layer with the rounded weights.
        """
        floats = self.finish_convolutions()
        for name, layer in self.layers.items():
            if isinstance(layer, QATLinear):
                made, reason = final_layer(layer)
                if reason is not None:
                    floats[name] = reason
                modules.take_over(layer, made, skip=("fake_weight", "fake_input"))
                modules.replace(self.model, layer, made)
        return QATResult(tuple(name for name in self.layers if name not in floats), floats)

    def finish_convolutions(self, accelerate: bool = True) -> dict[str, str]:
        """The first half of :meth:`finish`: freeze everything, and put convolutions in place of trained ones.

        Args:
            accelerate: False makes all of them float.

        Returns:
            The convolutions that are float, and why.
        """
        self.freeze_observers()
        self.freeze_norms()
        floats = {}
        for name, layer in self.layers.items():
            if isinstance(layer, QATConv2d):
                made, reason = final_layer(layer) if accelerate else (layer.to_float(), "it was not to be accelerated")
                if reason is not None:
                    floats[name] = reason
                self._place(name, layer, made)
        return floats

    def _prepare(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        refused = {one.module: one.refusal for one in find_candidates(self.model)}
        tied = modules.tied_parameters(self.model)
        found = dict(self.model.named_modules())
        for name, module in found.items():
            if matches([name], exclude) is not None or (include and matches([name], include) is None):
                continue
            made: QATLinear | QATConv2d
            if type(module) is nn.Linear and refused.get(module) is None:
                made = QATLinear.of(module, self.scheme)
            elif type(module) is nn.Conv2d and id(module) not in tied:
                norm = found.get(self._absorbed.get(name, ""))
                made = QATConv2d.of(module, self.scheme, norm if isinstance(norm, nn.BatchNorm2d) else None)
                if made.norm is not None:
                    modules.replace(self.model, made.norm, _Absorbed(made.norm))
            else:
                continue
            if module is self.model:
                raise SwapError("the model is itself a layer; put it into an nn.Sequential")
            modules.take_over(module, made)
            modules.replace(self.model, module, made)
            self.layers[name] = made
        if not self.layers:
            raise SwapError("no linear or convolution layer is selected")

    def _place(self, name: str, layer: QATConv2d, made: nn.Module) -> None:
        if layer.norm is None:
            modules.take_over(layer, made, skip=("fake_weight", "fake_input"))
            modules.replace(self.model, layer, made)
            return
        # Folding changes the structure, which a file has to know.
        folded = layer.to_float()
        replace_module(self.model, name, folded)
        replace_module(self.model, self._absorbed[name], nn.Identity())
        modules.replace(self.model, folded, made)


class _Absorbed(nn.Identity):
    """Stands where a batch norm was that a convolution has taken in."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.training = norm.training


def final_layer(layer: QATLinear | QATConv2d) -> tuple[nn.Module, str | None]:
    """The accelerated layer with the integers of a trained one, and None; or a float one, and why."""
    reason = _unsupported(layer)
    if reason is None:
        try:
            return _accelerated(layer), None
        except ValueError as error:
            reason = str(error)
    return layer.to_float(), reason


def _unsupported(layer: QATLinear | QATConv2d) -> str | None:
    """Why no accelerated layer computes what this one does, or None."""
    if layer.fake_input is None:
        return "its input is float"
    if layer.fake_input.bits != KERNEL_BITS:
        return f"the kernels take inputs of {KERNEL_BITS} bits, not {layer.fake_input.bits}"
    if layer.fake_input.mode == "static" and not bool(layer.fake_input.ranged):
        return "it was never called"
    if isinstance(layer, QATConv2d) and (layer.fake_weight.bits != KERNEL_BITS or layer.fake_weight.scale.shape[1] > 1):
        return "convolutions take weights of 8 bits with one scale per channel"
    return None


def _accelerated(layer: QATLinear | QATConv2d) -> nn.Module:
    assert layer.fake_input is not None
    settings: dict[str, Any] = {}
    if layer.fake_input.mode == "static":
        settings = {
            "x_scale": float(layer.fake_input.scale.detach()),
            "x_zero_point": int(layer.fake_input.zero_point),
        }
    codes = layer.codes()
    if isinstance(layer, QATConv2d):
        made = Int8Conv2d.from_float(layer.to_float(), **settings)
        q = values(codes.codes, codes.table, codes.group_size).view_as(layer.weight)
        made.fill({**made.canonical_tensors(), "weight_q": q.contiguous(), "weight_scale": codes.scale[:, 0].clone()})
        return made
    plain = nn.Linear(layer.weight.shape[1], layer.weight.shape[0], device="meta")
    plain.weight, plain.training = layer.weight, layer.training
    plain.register_parameter("bias", layer._parameters["bias"])
    return layer_from_codes(plain, codes, **settings)


def _run(model: nn.Module, batch: Any, index: int) -> None:
    """One calibration batch: static layers that observe do so in training mode only, or as long as they saw nothing."""
    inputs = [m for m in model.modules() if isinstance(m, QATLinear | QATConv2d) and m.fake_input is not None]
    with observe.watching(inputs, _see):
        observe.run(model, batch, f"calibration batch {index}")


def _see(layer: nn.Module, x: Any, _: Any) -> None:
    assert isinstance(layer, QATLinear | QATConv2d)
    fake = layer.fake_input
    if fake is not None and fake.mode == "static" and fake.observing:
        fake.fresh.add(x)

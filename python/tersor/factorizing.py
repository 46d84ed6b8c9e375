"""The factorize step of a recipe: thinner layers, where they are measured faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from tersor import observe
from tersor.errors import RecipeError
from tersor.factorize import FactoredLinear, FactorizedLayer, RankRule, factorize
from tersor.selection import ALL_ROWS

if TYPE_CHECKING:
    from tersor.pipeline import Run
    from tersor.steps import Factorize
    from tersor.tune_lowrank import LowRankTuner

_LISTED = 8  # reasons in the note
_GAIN = 1.05  # a fused layer has to be so many times as fast as the dense one


def factorize_model(run: Run, step: Factorize) -> list[FactorizedLayer]:
    """Factorise the selected layers of ``run.model``, in place.

    Raises:
        RecipeError: activation-aware SVD without calibration data or example inputs.
        FactorizeError: no layer is selected.
        SwapError: the model failed on the inputs.
    """
    if step.method == "asvd" and run.batches is None:
        raise RecipeError('method = "asvd" needs calibration data or example inputs: pass calibration=')
    speed = None if run.force else _Speed(run, step)
    rule: RankRule | Callable[[str, nn.Linear], RankRule | str] = step.rule
    if step.speedup is not None:
        if speed is None:
            raise RecipeError("speedup = ... measures the rank, which force=True forbids; give a ratio instead")
        rule = speed.rule
    return factorize(
        run.model,
        rule,
        method=step.method,
        batches=run.batches,
        convolutions=step.convolutions,
        embeddings=step.embeddings,
        include=run.include,
        exclude=run.exclude,
        untie=run.untie,
        judge=None if speed is None else speed.judge,
        progress=run.progress,
    )


class _Speed:
    """Which ranks the kernels of this host reward, for the numbers of rows that the example inputs bring."""

    def __init__(self, run: Run, step: Factorize) -> None:
        self.step = step
        self.quantised = step.kernel == "int8"
        layers = [module for module in run.model.modules() if type(module) is nn.Linear]
        self.seen = observe.observe_rows(run.model, layers, *run.inputs) if run.inputs else {}
        self._tuner: LowRankTuner | None = None

    @property
    def tuner(self) -> LowRankTuner:
        from tersor.tune_lowrank import LowRankTuner

        self._tuner = self._tuner or LowRankTuner()
        return self._tuner

    def usage(self, module: nn.Module) -> tuple[tuple[int, ...], torch.dtype]:
        seen = self.seen.get(id(module))
        if seen is None or not seen.rows:
            weight: torch.Tensor = module.weight  # type: ignore[assignment]
            return ALL_ROWS, weight.dtype
        return tuple(sorted(seen.rows)), seen.dtype

    def largest(self, module: nn.Linear, gain: float) -> int | None:
        return self.tuner.largest_rank(module, gain, *self.usage(module), self.quantised)

    def rule(self, name: str, module: nn.Linear) -> RankRule | str:
        """The largest rank that is fast enough."""
        gain = float(self.step.speedup or 1)
        rank = self.largest(module, gain)
        if rank is None:
            return f"no rank is {gain:.2f} times as fast as the dense {self.step.kernel} layer"
        return RankRule("rank", rank)

    def judge(self, name: str, module: nn.Module, factored: FactoredLinear) -> str | None:
        """Why the dense layer is better, and which rank would be faster than it."""
        assert isinstance(module, nn.Linear)
        gains = self.tuner.gains(module, factored.rank, *self.usage(module), self.quantised)
        worst = min(gains, key=lambda bucket: gains[bucket])
        if gains[worst] >= _GAIN:
            return None
        rank = self.largest(module, _GAIN)
        would = "no rank would" if rank is None else f"rank {rank} would"
        kernel = self.step.kernel
        return (
            f"rank {factored.rank} is {gains[worst]:.2f} times as fast as the dense {kernel} layer at {worst} rows; "
            f"{would} pay"
        )


def factorized_note(step: Factorize, layers: list[FactorizedLayer]) -> str:
    """What the step did, in sentences for the report."""
    done = [layer for layer in layers if not layer.reason]
    kept = [layer for layer in layers if layer.reason]
    before, after = sum(layer.before for layer in done), sum(layer.after for layer in done)
    text = f"factorised {len(done)} of {len(layers)} layers by {step.method}"
    if done:
        ranks = sorted(layer.rank for layer in done)
        worst = max(done, key=lambda layer: layer.error)
        text += (
            f": {after / before:.0%} of their parameters, ranks {ranks[0]} to {ranks[-1]}, relative error of a cut "
            f"{worst.error:.3f} at most ({worst.name})"
        )
    if kept:
        some = "; ".join(f"{layer.name}: {layer.reason}" for layer in kept[:_LISTED])
        text += f". Kept: {some}" + (f"; and {len(kept) - _LISTED} more" if len(kept) > _LISTED else "")
    return text

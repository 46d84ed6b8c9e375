"""The QAT step of a recipe: training, and afterwards the layers that compute what was trained."""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING

import torch

from tersor.conversion import Conversion
from tersor.errors import RecipeError
from tersor.modules import Candidate
from tersor.nn import Int8Linear
from tersor.pruning import match, own_loss
from tersor.quantize.qat import QAT, QATLinear, Scheme
from tersor.quantize.qat.trainer import final_layer
from tersor.selection import Choice
from tersor.swap import layer_row
from tersor.training import train, unfrozen
from tersor.tune import Tuner

if TYPE_CHECKING:
    from tersor.pipeline import Run
    from tersor.steps import QAT as QATStep  # noqa: N811


def train_quantized(run: Run, step: QATStep) -> None:
    """Train ``run.model`` with rounded weights and inputs; convolutions are final afterwards, linear layers are not.

    Raises:
        RecipeError: no train data, or data without a length.
        TrainError: see tersor.training.train.
        SwapError: no layer is selected.
    """
    data = run.train
    if data is None or not isinstance(data, Sized):
        raise RecipeError("the step 'qat' trains: pass train=batches, a list or a DataLoader")
    calibration = run.calibration if run.calibration is not None and step.activations == "static" else ()
    scheme = Scheme(
        step.bits, step.codebook, step.group_size, step.activations, 8, step.observer, step.steps == "learned"
    )
    with unfrozen(run.model):
        qat = QAT(
            run.model,
            scheme,
            steps=len(data) * step.epochs,
            observe=step.observe,
            norms=step.norms,
            include=run.include,
            exclude=run.exclude,
            calibration=calibration,
        )
        done = train(
            run.model,
            data,
            own_loss if step.loss == "model" else match(run.teacher),
            epochs=step.epochs,
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=step.learning_rate, weight_decay=0.0),
            rate="cosine",
            state=run.state,
            companions=[qat],
            text="training with rounding",
            progress=run.progress,
        )
    floats = qat.finish_convolutions(accelerate=run.force)
    linear = sum(isinstance(layer, QATLinear) for layer in qat.layers.values())
    others = len(qat.layers) - linear
    also = f" and {others} convolutions, {len(floats)} of them float with rounded weights" if others else ""
    run.notes.append(
        f"trained with rounding for {len(done.losses)} steps, loss {done.losses[0]:.3g} to {done.losses[-1]:.3g}: "
        f"{linear} linear layers ({step.weights}, {step.codebook}){also}"
    )


def convert_trained(conversion: Conversion) -> None:
    """Replace the linear layers that a QAT step trained by those that compute the same integers."""
    run = conversion.run
    tuner = None if run.force else Tuner()
    for name, layer in run.model.named_modules():
        if not isinstance(layer, QATLinear):
            continue
        made, reason = final_layer(layer)
        choice = Choice(Candidate((name,), layer, None), reason, forced=tuner is None and reason is None)
        if tuner is not None and isinstance(made, Int8Linear):
            choice.verdict = tuner.judge(layer.to_float())
            if not choice.verdict.faster:
                made, choice.reason = layer.to_float(), f"{choice.verdict.reason}; float, with rounded weights"
        conversion.replacements[layer], conversion.names[layer] = made, (name,)
        conversion.rows[layer] = layer_row(choice, None if choice.reason else made)

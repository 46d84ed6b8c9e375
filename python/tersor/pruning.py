"""The prune step of a recipe: zeros in a model, with training to recover where there is data for it."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tersor import observe
from tersor.errors import PruneError, RecipeError
from tersor.progress import working
from tersor.prune import CRITERIA, Pruner, PruneResult, fit, parse_pattern
from tersor.prune.blockwise import prune_blocks
from tersor.prune.calibration import Loss
from tersor.selection import choose, open_choices, require_any
from tersor.training import adamw, unfrozen

if TYPE_CHECKING:
    from tersor.pipeline import Run
    from tersor.steps import Prune


def prune_model(run: Run, step: Prune) -> PruneResult:
    """Prune the selected linear layers of ``run.model``, in place, and train it where there is data.

    Raises:
        RecipeError: a gradual schedule without train data, a criterion without its data.
        PruneError: see :class:`tersor.prune.Pruner` and :func:`tersor.prune.fit`; the model returns no loss.
        SwapError: no linear layer is selected.
    """
    model, train, calibration = run.model, run.train, run.batches
    needs = CRITERIA[step.criterion].needs
    if step.schedule != "one_shot" and train is None:
        raise RecipeError(
            f'schedule = "{step.schedule}" removes weights while training: pass train=batches, or use "one_shot"'
        )
    if needs != "nothing" and calibration is None:
        raise RecipeError(f'criterion = "{step.criterion}" needs calibration data or example inputs: pass calibration=')
    if step.blockwise:
        wanted = {name: float(_own_sparsity(name, step)) for name in _names(run)}
        with working("pruning block by block", shown=run.progress):
            return prune_blocks(model, calibration or [], parse_pattern(step.pattern), wanted)
    settings: dict[str, Any] = {
        "criterion": step.criterion,
        "pattern": step.pattern,
        "sparsity": step.sparsity,
        "scope": step.scope,
        "overrides": step.overrides,
        "include": _names(run),
    }
    if needs != "nothing":
        settings["calibration"] = calibration
    if train is None or step.epochs == 0:
        with working("pruning", shown=run.progress):
            loss = own_loss if needs == "gradients" else None
            return Pruner(model, **settings, loss=loss).finish()
    with unfrozen(model):
        return fit(
            model,
            train,
            own_loss if step.loss == "model" else match(run.teacher),
            epochs=step.epochs,
            optimizer=adamw(step.learning_rate),
            recovery=step.recovery,
            schedule=step.schedule,
            criterion_loss=own_loss if needs == "gradients" else None,
            progress=run.progress,
            state=run.state,
            **settings,
        )


def pruned_note(step: Prune, result: PruneResult) -> str:
    """What pruning did, in a sentence for the report."""
    trained = ""
    if result.losses:
        trained = f", trained for {len(result.losses)} steps, loss {result.losses[0]:.3g} to {result.losses[-1]:.3g}"
    return (
        f"pruned {len(result.layers)} layers by {step.criterion}, {step.pattern}: {result.sparsity:.1%} of their "
        f"weights are 0{trained}; errors of layers are against the pruned model, that of the output against the float "
        "model"
    )


def _names(run: Run) -> list[str]:
    choices, _ = choose(run.model, run.include, run.exclude, run.untie)
    require_any(choices)
    return [choice.candidate.name for choice in open_choices(choices)]


def _own_sparsity(name: str, step: Prune) -> float:
    found = (value for wildcard, value in step.overrides.items() if fnmatchcase(name, wildcard))
    return next(found, 0.8 if step.sparsity is None else step.sparsity)


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a model returns itself, as those of transformers do when they are given labels.

    Raises:
        PruneError: the output has none.
    """
    output = observe.call(model, batch)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise PruneError(
            f"{type(model).__name__} returned no loss for {observe.describe(batch)}; give batches with labels to a "
            "model that returns its loss, use another criterion or loss, or tersor.prune with a loss of your own"
        )
    return loss.reshape(())


def match(teacher: nn.Module) -> Loss:
    """A loss: the squared distance of a model's outputs to the teacher's, relative to the teacher's squared size.

    The model is run in eval mode. Where the batch has an ``attention_mask`` [batch, tokens], outputs
    [batch, tokens, ...] count at its ones only.
    """

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with observe.quiet(teacher):
            expected = list(observe.floats(observe.call(teacher, batch)))
        model.eval()
        got = list(observe.floats(observe.call(model, batch)))
        if not got or [tensor.shape for tensor in got] != [tensor.shape for tensor in expected]:
            raise PruneError(
                f"{type(model).__name__} has no outputs of floats to compare with those of the float model"
            )
        keep = _kept(batch)
        terms = [_distance(one, other, keep) for one, other in zip(got, expected, strict=True)]
        return torch.stack(terms).mean()

    return loss


def _distance(got: Tensor, expected: Tensor, keep: Tensor | None) -> Tensor:
    if keep is not None and got.dim() > 2 and got.shape[:2] == keep.shape:
        got, expected = got[keep], expected[keep]
    wide = expected.to(torch.float32)
    return (got.to(torch.float32) - wide).square().sum() / wide.square().sum().clamp_min(
        torch.finfo(torch.float32).tiny
    )


def _kept(batch: Any) -> Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None

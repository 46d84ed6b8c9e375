"""Taking whole blocks out of a stack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tersor import observe, structure
from tersor.errors import StructureError, TersorError
from tersor.prune.calibration import Calibration, Loss, mean_loss
from tersor.selection import matches
from tersor.structure import checks


@dataclass(frozen=True)
class DropResult:
    """What :func:`drop_layers` did.

    Attributes:
        dropped: the names that the blocks had.
        scores: of every block that could be dropped, by its old name: its influence, or what dropping it alone costs.
        refused: blocks that the model doesn't work without, by name: why.
    """

    dropped: tuple[str, ...]
    scores: Mapping[str, float]
    refused: Mapping[str, str]


@dataclass
class _Block:
    stack: str
    index: int
    name: str
    influence: float = 0.0


def drop_layers(
    model: nn.Module,
    batches: Iterable[Any],
    count: int | None = None,
    *,
    by: Literal["influence", "loss"] = "influence",
    names: Sequence[str] = (),
    stack: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    loss: Loss | None = None,
) -> DropResult:
    """Removes whole blocks of ``model``, in place: encoder and decoder layers, or any blocks that keep their shape.

    The blocks of every ``nn.ModuleList`` and ``nn.Sequential`` that put out what they were given in shape are looked
    at; blocks inside of other blocks are not. The configuration of transformers models follows. The first batch runs
    through the result before this returns; on failure the model is as before.

    Args:
        model: changed in place, and run in eval mode without gradients.
        batches: inputs, or what ``loss`` takes; iterated again and again, so a list or a DataLoader.
        count: how many blocks to drop.
        by: ``"influence"``: those with the smallest block influence, 1 - the mean cosine of what goes in and what comes
            out (Men et al., ShortGPT, arXiv 2403.03853), over tokens where ``attention_mask`` is 1; ``"loss"``: again
            and again the one whose removal leaves the lowest mean loss (count * blocks passes over ``batches``).
        names: instead of ``count``, the qualified names of the blocks.
        stack: the name of the one stack to look at; None: all.
        include, exclude: shell wildcards on the blocks' names.
        loss: ``loss(model, batch)``, for ``by="loss"``.

    Raises:
        StructureError: no such blocks, not enough of them, or the model does not work without them.
    """
    data = Calibration(batches, loss)
    if (count is None) == (not names):
        raise StructureError("give either count or names")
    blocks = _find(model, data, stack)
    if names:
        known = {block.name: block for block in blocks}
        if unknown := [name for name in names if name not in known]:
            raise StructureError(f"{unknown[0]!r} is no block that keeps its shape; those are {', '.join(known)}")
        return _drop_named(model, data, [known[name] for name in names], blocks)
    chosen = [block for block in blocks if _selected(block.name, include, exclude)]
    assert count is not None
    if not 0 < count < len(chosen) + (len(chosen) < len(blocks)):
        raise StructureError(
            f"count = {count}, but {len(chosen)} blocks can be dropped: {', '.join(block.name for block in chosen)}"
        )
    if by == "loss":
        if loss is None:
            raise StructureError('by = "loss" needs loss(model, batch)')
        return _greedy(model, data, chosen, count)
    return _by_influence(model, data, chosen, count)


def _selected(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    return matches([name], exclude) is None and (not include or matches([name], include) is not None)


def _drop_named(model: nn.Module, data: Calibration, chosen: list[_Block], blocks: list[_Block]) -> DropResult:
    failure = _try(model, data, chosen)
    if failure is not None:
        raise StructureError(f"the model does not work without {', '.join(b.name for b in chosen)}: {failure}")
    return DropResult(tuple(b.name for b in chosen), {b.name: b.influence for b in blocks}, {})


def _by_influence(model: nn.Module, data: Calibration, blocks: list[_Block], count: int) -> DropResult:
    ranked = sorted(blocks, key=lambda block: block.influence)
    scores = {block.name: block.influence for block in blocks}
    refused: dict[str, str] = {}
    while True:
        chosen = [block for block in ranked if block.name not in refused][:count]
        if len(chosen) < count:
            raise StructureError(f"{count} blocks can't be dropped. {checks.listed(refused)}")
        failure = _try(model, data, chosen)
        if failure is None:
            return DropResult(tuple(block.name for block in chosen), scores, refused)
        refused |= _culprits(model, data, chosen, failure)


def _culprits(model: nn.Module, data: Calibration, chosen: list[_Block], failure: str) -> dict[str, str]:
    """Those of the blocks that the model does not even work without alone, else the last of them."""
    found = {}
    for block in chosen:
        saved = structure.Snapshot(model)
        alone = _try(model, data, [block])
        saved.restore()
        if alone is not None:
            found[block.name] = alone
    return found or {chosen[-1].name: failure}


def _greedy(model: nn.Module, data: Calibration, blocks: list[_Block], count: int) -> DropResult:
    base = mean_loss(model, data)
    gone: list[_Block] = []
    first: dict[str, float] = {}
    refused: dict[str, str] = {}
    whole = structure.Snapshot(model)
    for _ in range(count):
        costs: dict[str, float] = {}
        for block in blocks:
            if block in gone or block.name in refused:
                continue
            failure = _try(model, data, [*gone, block])
            if failure is None:
                costs[block.name] = mean_loss(model, data) - base
            else:
                refused[block.name] = failure
            whole.restore()
        if not costs:
            raise StructureError(f"{count} blocks can't be dropped. {checks.listed(refused)}")
        first = first or costs
        best = min(costs, key=costs.__getitem__)
        gone.append(next(block for block in blocks if block.name == best))
    _try(model, data, gone)
    return DropResult(tuple(block.name for block in gone), first, refused)


def _try(model: nn.Module, data: Calibration, chosen: Sequence[_Block]) -> str | None:
    """Drops blocks and runs the first batch; the reason why that failed, with the model as before, or None."""
    stacks: dict[str, list[int]] = {}
    for block in chosen:
        stacks.setdefault(block.stack, []).append(block.index)
    saved = structure.Snapshot(model)
    try:
        for name, indices in stacks.items():
            structure.edit(model, "drop_blocks", {"stack": name, "drop": sorted(indices)})
        _run(model, data, next(iter(data.batches)))
    except Exception as error:
        saved.restore()
        return f"{type(error).__name__}: {error}"
    return None


def _run(model: nn.Module, data: Calibration, batch: Any) -> None:
    with observe.quiet(model):
        if data.loss is None:
            observe.call(model, batch)
        else:
            data.loss(model, batch)


def _find(model: nn.Module, data: Calibration, stack: str | None) -> list[_Block]:
    """The blocks that keep their shape on all batches, with their influence."""
    parents = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.Sequential)
    }
    if stack is not None and stack not in parents:
        raise StructureError(f"{stack!r} is no nn.ModuleList or nn.Sequential; those are {', '.join(parents)}")
    candidates: dict[nn.Module, _Block] = {}
    taken: set[str] = set()
    for name, parent in parents.items():
        if (stack is not None and name != stack) or any(name.startswith(f"{block}.") for block in taken):
            continue
        for index, (key, child) in enumerate(parent._modules.items()):
            if child is not None and len(parent) > 1 and _has_weights(child):
                full = f"{name}.{key}" if name else key
                candidates[child] = _Block(name, index, full)
                taken.add(full)
    kept = _influences(model, data, candidates)
    if not kept:
        raise StructureError("the model has no blocks that keep their shape, in an nn.ModuleList or nn.Sequential")
    return kept


def _has_weights(module: nn.Module) -> bool:
    """A block, as opposed to an activation or a single norm."""
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _influences(model: nn.Module, data: Calibration, candidates: Mapping[nn.Module, _Block]) -> list[_Block]:
    sums: dict[nn.Module, list[float]] = {module: [0.0, 0.0] for module in candidates}
    failed: set[nn.Module] = set()
    mask: Tensor | None = None

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = next((value for value in [*args, *kwargs.values()] if isinstance(value, Tensor)), None)
        y = output if isinstance(output, Tensor) else output[0] if isinstance(output, tuple) and output else None
        if not isinstance(x, Tensor) or not isinstance(y, Tensor) or x.shape != y.shape or x is y or x.dim() < 2:
            failed.add(module)
            return
        total, weight = _similarity(x, y, mask)
        sums[module][0] += total
        sums[module][1] += weight

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in candidates]
    try:
        for batch in data.batches:
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            try:
                _run(model, data, batch)
            except TersorError:
                raise
            except Exception as error:
                raise StructureError(f"the model failed on a batch: {type(error).__name__}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
    kept = []
    for module, block in candidates.items():
        if module not in failed and sums[module][1] > 0:
            block.influence = 1 - sums[module][0] / sums[module][1]
            kept.append(block)
    return kept


def _similarity(x: Tensor, y: Tensor, mask: Tensor | None) -> tuple[float, float]:
    """The sum of cosines and their number: per token of [batch, tokens, size], per place of [batch, size, h, w]."""
    dim = 1 if x.dim() == 4 else -1
    cosine = torch.nn.functional.cosine_similarity(x.to(torch.float32), y.to(torch.float32), dim=dim, eps=1e-12)
    if isinstance(mask, Tensor) and mask.shape == cosine.shape:
        cosine = cosine[mask.bool()]
    return float(cosine.sum()), float(cosine.numel())

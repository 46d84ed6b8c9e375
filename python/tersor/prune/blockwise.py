"""Encoder blocks pruned one after another, each solved to return what the float block returns.

SparseGPT asks of every layer what it did to the inputs it has now; errors of earlier layers are there to stay. Here the
float model's activations go along: a layer is to give, from the inputs that the pruned model has, the output that the
float layer gives from the float inputs, and a layer on a residual path takes the error of that path on top. Which
weights go is found by optimal brain surgery around the least-squares weights; those that stay are then solved exactly.

Sources: Frantar and Alistarh, SparseGPT, arXiv 2301.00774 (which weights go); Hubara et al., arXiv 2006.10518, and
Frantar and Alistarh, OBC, arXiv 2208.11580 (targets of the float model for inputs of the compressed one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tersor import observe
from tersor.encoder.family import argument_names, part
from tersor.encoder.masks import recognise
from tersor.encoder.probe import PROBE, BlockShape, Found, shape_of
from tersor.encoder.reference import encoder_block, padded_scores
from tersor.errors import PruneError
from tersor.prune.criteria.sparsegpt import eliminate
from tersor.prune.layers import PrunableLayer
from tersor.prune.patterns import Pattern
from tersor.prune.pruner import PrunedLayer, PruneResult
from tersor.prune.removal import count_of
from tersor.second_order import inverse_factor

_BLOCK = 128  # columns per choice, as in SparseGPT


@dataclass
class _Block:
    """A block, its parts, and what it was given: x [batch, tokens, hidden], keep [batch, tokens], a bias of scores."""

    name: str
    module: nn.Module
    found: Found
    calls: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    fits: bool = True  # its mask is about padding alone


@dataclass(frozen=True)
class _Trace:
    """Inputs and outputs of the parts of a float block, and what its two residuals add to."""

    parts: Mapping[str, tuple[Tensor, Tensor]]
    x: Tensor
    y: Tensor

    def base(self, norm_first: bool) -> Tensor:
        """What the feed-forward part is added to."""
        return self.parts["norm2"][0] if norm_first else self.parts["norm1"][1]


@torch.no_grad()
def prune_blocks(
    model: nn.Module,
    batches: Iterable[Any],
    pattern: Pattern,
    sparsities: Mapping[str, float],
    damping: float = 0.01,
) -> PruneResult:
    """Prune linear layers of encoder blocks, in place, and solve what stays of them.

    Args:
        model: in float32, on the CPU.
        batches: calibration data; activations of all of them are held for one block at a time, and the inputs of all
            blocks. Some ten thousand tokens do.
        sparsities: by the name of the layer. Zeros that a layer has already are not kept for their own sake.
        damping: part of the mean squared input that holds weights near those of the float layer.

    Raises:
        PruneError: a layer is in no encoder block that is known or not float32 on the CPU, or activations hold NaN.
        SwapError: the model failed on the data; its exception is chained.
    """
    blocks = _find(model)
    homes = {id(layer) for block in blocks for layer in _linears(block).values()}
    lost = [name for name in sparsities if id(model.get_submodule(name)) not in homes]
    if lost or not blocks:
        raise PruneError(f"only layers of known encoder blocks can be pruned block by block, not {', '.join(lost[:5])}")
    if any(
        one.dtype != torch.float32 or one.device.type != "cpu" for block in blocks for one in block.module.parameters()
    ):
        raise PruneError("pruning block by block needs a model in float32 on the CPU")
    _watch(model, blocks, batches)
    float_y = student_y = None
    layers: list[PrunedLayer] = []
    for block in blocks:
        if not block.fits:
            raise PruneError(f"{block.name} is called with a mask that is about more than padding")
        if not block.calls:
            raise PruneError(f"{block.name} was not run on the calibration data")
        x, keep, bias = _joined(block.calls)
        block.calls.clear()
        follows = float_y is not None and x.shape == float_y.shape and torch.allclose(x[keep], float_y[keep], atol=1e-3)
        pruned_x = student_y if follows and student_y is not None else x
        scores = padded_scores(keep, bias if bias.numel() else None)
        shape = shape_of(block.module, block.found.anatomy)
        trace = _float_pass(block, shape, x, scores)
        solver = _Solver(block, shape, trace, keep, pattern, sparsities, damping)
        student_y, float_y = solver.run(pruned_x, scores), trace.y
        layers += solver.done
    return PruneResult(tuple(layers), {})


def _find(model: nn.Module) -> list[_Block]:
    blocks = []
    for name, module in model.named_modules():
        try:
            found = PROBE.look(module)
        except ValueError:
            continue
        if found is not None and len(found.anatomy.qkv) == 3:
            blocks.append(_Block(name, module, found))
    return blocks


def _linears(block: _Block) -> dict[str, nn.Linear]:
    found = {path: part(block.module, path) for path in block.found.anatomy.linears}
    return {path: layer for path, layer in found.items() if type(layer) is nn.Linear}


def _watch(model: nn.Module, blocks: Iterable[_Block], batches: Iterable[Any]) -> None:
    """Note what every block is given."""
    hooks = []
    for block in blocks:
        hooks.append(block.module.register_forward_pre_hook(_noting(block), with_kwargs=True))
    try:
        for batch in batches:
            observe.run(model, batch, "a calibration batch")
    finally:
        for hook in hooks:
            hook.remove()


def _noting(block: _Block) -> Callable[..., None]:
    family, names = block.found.family, argument_names(type(block.module))

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = family.read(names, args, kwargs)
        read = None if call is None else recognise(call.x, call.mask, call.score_bias, family.true_is_kept)
        if call is None or read is None:
            block.fits = False
            return
        keep = read[0] if read[0].numel() else torch.ones(call.x.shape[:2], dtype=torch.bool)
        block.calls.append((call.x.float(), keep, read[1]))

    return note


def _joined(calls: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """All calls as one, padded to the longest; the bias of scores is that of the longest."""
    longest = max(x.shape[1] for x, _, _ in calls)
    room = [longest - x.shape[1] for x, _, _ in calls]
    x = torch.cat([functional.pad(one, (0, 0, 0, more)) for (one, _, _), more in zip(calls, room, strict=True)])
    keep = torch.cat([functional.pad(one, (0, more)) for (_, one, _), more in zip(calls, room, strict=True)])
    return x, keep, calls[room.index(0)][2]


def _float_pass(block: _Block, shape: BlockShape, x: Tensor, scores: Tensor) -> _Trace:
    parts: dict[str, tuple[Tensor, Tensor]] = {}

    def noting(name: str, layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(z: Tensor) -> Tensor:
            parts[name] = (z, layer(z))
            return parts[name][1]

        return run

    layers = {name: noting(name, layer) for name, layer in _layers(block).items()}
    return _Trace(parts, x, encoder_block(x, layers, shape, scores))


def _layers(block: _Block) -> dict[str, Callable[[Tensor], Tensor]]:
    """The parts of a block as :func:`encoder_block` calls them."""
    module, anatomy = block.module, block.found.anatomy
    qkv = [part(module, path) for path in anatomy.qkv]
    names = ("out", "up", "down", "norm1", "norm2")
    made: dict[str, Any] = {name: part(module, getattr(anatomy, name)) for name in names}
    return {"qkv": lambda z: torch.cat([layer(z) for layer in qkv if layer is not None], -1), **made}


class _Solver:
    """Runs a block on the pruned model's activations and solves each layer as it comes."""

    def __init__(
        self,
        block: _Block,
        shape: BlockShape,
        trace: _Trace,
        keep: Tensor,
        pattern: Pattern,
        sparsities: Mapping[str, float],
        damping: float,
    ) -> None:
        self.block, self.shape, self.trace, self.keep = block, shape, trace, keep
        self.pattern, self.sparsities, self.damping = pattern, sparsities, damping
        self.done: list[PrunedLayer] = []
        self._base = trace.x

    def run(self, x: Tensor, scores: Tensor) -> Tensor:
        """The output of the pruned block."""
        anatomy, parts, first = self.block.found.anatomy, self.trace.parts, self.shape.norm_first
        norms = {name: part(self.block.module, getattr(anatomy, name)) for name in ("norm1", "norm2")}

        def qkv(z: Tensor) -> Tensor:
            wanted = parts["qkv"][1].chunk(3, -1)
            return torch.cat([self._solve(path, z, y) for path, y in zip(anatomy.qkv, wanted, strict=True)], -1)

        def out(z: Tensor) -> Tensor:
            return self._solve(anatomy.out, z, parts["out"][1] + self.trace.x - x)

        def norm1(z: Tensor) -> Tensor:
            assert norms["norm1"] is not None
            found: Tensor = norms["norm1"](z)
            self._base = self._base if first else found
            return found

        def norm2(z: Tensor) -> Tensor:
            assert norms["norm2"] is not None
            self._base = z if first else self._base
            found: Tensor = norms["norm2"](z)
            return found

        def down(z: Tensor) -> Tensor:
            return self._solve(anatomy.down, z, parts["down"][1] + self.trace.base(first) - self._base)

        layers = {"qkv": qkv, "out": out, "norm1": norm1, "norm2": norm2, "down": down}
        return encoder_block(
            x, {**layers, "up": lambda z: self._solve(anatomy.up, z, parts["up"][1])}, self.shape, scores
        )

    def _solve(self, path: str, z: Tensor, wanted: Tensor) -> Tensor:
        """Prune the layer at a path so that it makes ``wanted`` of z at tokens that count; returns what it makes."""
        name = f"{self.block.name}.{path}" if self.block.name else path
        linear = part(self.block.module, path)
        assert isinstance(linear, nn.Linear)
        if name in self.sparsities:
            layer = PrunableLayer(name, linear)
            asked = self.sparsities[name]
            count = count_of(layer, self.pattern, asked)
            solve_layer(layer, z[self.keep], wanted[self.keep], self.pattern, count, self.damping)
            zeros = int((linear.weight == 0).sum())
            self.done.append(PrunedLayer(name, linear.weight.numel(), zeros, asked))
        made: Tensor = linear(z)
        return made


@torch.no_grad()
def solve_layer(
    layer: PrunableLayer, x: Tensor, y: Tensor, pattern: Pattern, count: int, damping: float = 0.01
) -> None:
    """Zero ``count`` weights of a linear layer and set the others, and its bias, to ``argmin |W x + b - y|^2``.

    Args:
        x, y: inputs [tokens, in] and wanted outputs [tokens, out].
        damping: part of the mean squared input that pulls the weights to where they are.

    Raises:
        PruneError: x or y holds NaN or infinity.
    """
    bias = layer.module._parameters.get("bias")
    center = (x.mean(0), y.mean(0)) if bias is not None else (x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1]))
    x, y = x - center[0], y - center[1]
    gram, cross = (x.mT @ x / len(x)).double(), (y.mT @ x / len(x)).double()
    if not bool(cross.isfinite().all()):
        raise PruneError(f"{layer.name}: its inputs or the float model's outputs hold NaN or infinity")
    pull = damping * float(gram.diagonal().mean())
    gram.diagonal().add_(pull or 1.0)
    cross += pull * layer.matrix().double()
    best = torch.linalg.solve(gram, cross, left=False).float()
    try:
        factor = inverse_factor(gram, 1e-9)
    except ValueError as error:
        raise PruneError(f"{layer.name}: {error}") from error
    stays = eliminate(best.clone(), factor, pattern, count, torch.ones_like(best, dtype=torch.bool), _BLOCK)
    weight = torch.zeros_like(cross)
    for row, kept in enumerate(stays):
        at = kept.nonzero().flatten()
        weight[row, at] = torch.linalg.solve(gram[at][:, at], cross[row, at])
    weight = weight.float()
    layer.write(weight)
    if bias is not None:
        bias.copy_(center[1] - weight @ center[0])

"""Factorising the layers of a model in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from tersor.errors import FactorizeError, StructureError
from tersor.factorize.convolution import CONV_METHODS, conv_reason_against, factorize_convolution
from tersor.factorize.embedding import embedding_reason_against, factorize_embedding
from tersor.factorize.factored_linear import FactoredLinear
from tersor.factorize.linear import Inputs, factorize_linear
from tersor.factorize.rank import RankRule
from tersor.modules import find_candidates, tied_parameters
from tersor.progress import track
from tersor.quantize.moments import input_moments, portions
from tersor.structure.replace import replace_module

METHODS = ("svd", "asvd")

_FINE = 8  # ranks of convolutions and embeddings, which have fewer channels, are multiples of this

RuleFor = Callable[[str, nn.Linear], "RankRule | str"]
"""The rule for a linear layer, or why it stays."""

Judge = Callable[[str, nn.Module, FactoredLinear], "str | None"]
"""Told the name, a linear layer and its factors: why the layer stays, or None."""


@dataclass(frozen=True)
class FactorizedLayer:
    """What became of one layer.

    Attributes:
        name: its qualified name.
        kind: "linear", "convolution" or "embedding".
        rank: of the factors, the smaller one where there are two; 0 where none was chosen.
        error: relative error of the cut, of the weight or, weighted, of the outputs on the calibration inputs.
        before, after: its parameters.
        reason: why it stays as it was; empty where it was replaced.
    """

    name: str
    kind: str
    rank: int
    error: float
    before: int
    after: int
    reason: str


def factorize(
    model: nn.Module,
    rule: RankRule | RuleFor | None = None,
    *,
    method: str = "svd",
    batches: Iterable[Any] | None = None,
    convolutions: str | None = None,
    embeddings: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    untie: bool = False,
    judge: Judge | None = None,
    progress: bool = False,
) -> list[FactorizedLayer]:
    """Replace layers by products of thinner ones, in place; tersor.save can hold the result.

    Linear layers become a FactoredLinear, which tersor.swap and a Quantize step run in one native call; convolutions a
    chain of convolutions; embeddings a smaller embedding and a linear layer.

    Args:
        model: float, on the CPU; the layer itself can't be the model.
        rule: what decides on the rank; by default half of the parameters. Linear layers may each have their own.
            In convolutions and embeddings ranks are multiples of 8 at most.
        method: of linear layers: "svd", or "asvd", which weighs by the inputs that ``batches`` bring.
        batches: inputs of the model, looked at in one pass or, for large models, in several: a list or a loader.
        convolutions: "tucker2", "cp", "spatial", or None to leave them; 1x1 ones are cut by SVD in each case.
        embeddings: factorise them, too.
        include, exclude: shell wildcards on names.
        untie: layers with tied weights as well; each gets weights of its own.
        judge: may keep a linear layer for another reason, such as measured time.
        progress: a progress bar on a terminal.

    Raises:
        FactorizeError: no layer is selected, an unknown method, or "asvd" without batches.
        SwapError: the model failed on a batch.
    """
    if method not in METHODS:
        raise FactorizeError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    if convolutions is not None and convolutions not in CONV_METHODS:
        raise FactorizeError(f"unknown method {convolutions!r} for convolutions; known: {', '.join(CONV_METHODS)}")
    if method == "asvd" and batches is None:
        raise FactorizeError('method = "asvd" looks at inputs: pass batches of them (in a recipe, calibration data)')

    def selected(names: Sequence[str]) -> bool:
        return not _match(names, exclude) and (not include or _match(names, include))

    done: list[FactorizedLayer] = []
    candidates = [c for c in find_candidates(model, untie=untie) if selected(c.names)]
    linear: dict[str, nn.Linear] = {}
    for candidate in candidates:
        module = candidate.module
        if candidate.refusal is None and type(module) is nn.Linear:
            linear[candidate.name] = module
        else:
            done.append(_kept(candidate.name, "linear", module, candidate.refusal or "it is no nn.Linear"))
    others = _others(model, convolutions is not None, embeddings, selected, untie)
    if not candidates and not others:
        raise FactorizeError("no linear layer, convolution or embedding of the model is selected")

    def install(name: str, kind: str, module: nn.Module, made: tuple[nn.Module | None, int, float, str]) -> None:
        new, rank, error, reason = made
        if isinstance(new, FactoredLinear) and judge is not None:
            reason = judge(name, module, new) or ""
        before = _parameters(module)
        if new is not None and not reason:
            try:
                replace_module(model, name, new)
            except StructureError as problem:
                reason = str(problem)
        after = before if reason or new is None else _parameters(new)
        done.append(FactorizedLayer(name, kind, rank, error, before, after, reason))

    for names in portions({name: module.weight.shape[1] for name, module in linear.items()}):
        inputs = {}
        if method == "asvd" and batches is not None:
            inputs = input_moments(model, {name: linear[name] for name in names}, batches)
        for name in track(names, "factorising", shown=progress):
            module = linear[name]
            if method == "asvd" and name not in inputs:
                done.append(_kept(name, "linear", module, "the calibration data never reached it"))
                continue
            own = rule(name, module) if callable(rule) else rule or RankRule()
            if isinstance(own, str):
                done.append(_kept(name, "linear", module, own))
                continue
            seen = Inputs(inputs[name].gram, inputs[name].mean) if name in inputs else None
            install(name, "linear", module, factorize_linear(module, own, seen))
    general = rule if isinstance(rule, RankRule) else RankRule()
    fine = replace(general, round_to=min(general.round_to, _FINE))
    for name, other, against in track(others, "factorising", shown=progress):
        kind = "embedding" if isinstance(other, nn.Embedding) else "convolution"
        if against is not None:
            done.append(_kept(name, kind, other, against))
        elif isinstance(other, nn.Embedding):
            install(name, kind, other, factorize_embedding(other, fine))
        elif isinstance(other, nn.Conv2d) and convolutions is not None:
            install(name, kind, other, factorize_convolution(other, convolutions, fine))
    return done


def _others(
    model: nn.Module, convolutions: bool, embeddings: bool, selected: Callable[[Sequence[str]], bool], untie: bool
) -> list[tuple[str, nn.Module, str | None]]:
    """The selected convolutions and embeddings, each with the reason why it has to stay, if any."""
    tied = {} if untie else tied_parameters(model)
    found: list[tuple[str, nn.Module, str | None]] = []
    for name, module in model.named_modules():
        if not name or not selected([name]):
            continue
        if convolutions and isinstance(module, nn.Conv2d):
            found.append((name, module, conv_reason_against(module) or tied.get(id(module))))
        elif embeddings and isinstance(module, nn.Embedding):
            found.append((name, module, embedding_reason_against(module) or tied.get(id(module))))
    return found


def _match(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _kept(name: str, kind: str, module: nn.Module, reason: str) -> FactorizedLayer:
    size = _parameters(module)
    return FactorizedLayer(name, kind, 0, 0.0, size, size, reason)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

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
from tersor.modules import Candidate, find_candidates, tied_parameters
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

    candidates = [c for c in find_candidates(model, untie=untie) if selected(c.names)]
    others = _others(model, convolutions is not None, embeddings, selected, untie)
    if not candidates and not others:
        raise FactorizeError("no linear layer, convolution or embedding of the model is selected")
    work = _Work(model, judge, progress)
    work.linear(candidates, rule or RankRule(), batches if method == "asvd" else None)
    general = rule if isinstance(rule, RankRule) else RankRule()
    work.others(others, convolutions, replace(general, round_to=min(general.round_to, _FINE)))
    return work.done


class _Work:
    """One model under way; `done` has what became of its layers."""

    def __init__(self, model: nn.Module, judge: Judge | None, progress: bool) -> None:
        self.model, self.judge, self.progress = model, judge, progress
        self.done: list[FactorizedLayer] = []

    def linear(self, candidates: Sequence[Candidate], rule: RankRule | RuleFor, batches: Iterable[Any] | None) -> None:
        """Linear layers, weighted by their inputs where there are batches."""
        layers: dict[str, nn.Linear] = {}
        for candidate in candidates:
            module = candidate.module
            if candidate.refusal is None and type(module) is nn.Linear:
                layers[candidate.name] = module
            else:
                self.keep(candidate.name, "linear", module, candidate.refusal or "it is no nn.Linear")
        for names in portions({name: layer.in_features for name, layer in layers.items()}):
            part = {name: layers[name] for name in names}
            seen = None if batches is None else input_moments(self.model, part, batches)
            for name, layer in track(part.items(), "factorising", shown=self.progress):
                own = rule(name, layer) if callable(rule) else rule
                if isinstance(own, str):
                    self.keep(name, "linear", layer, own)
                elif seen is not None and name not in seen:
                    self.keep(name, "linear", layer, "the calibration data never reached it")
                else:
                    inputs = None if seen is None else Inputs(seen[name].gram, seen[name].mean)
                    self.install(name, "linear", layer, factorize_linear(layer, own, inputs))

    def others(
        self, found: Sequence[tuple[str, nn.Module, str | None]], convolutions: str | None, rule: RankRule
    ) -> None:
        """Convolutions and embeddings."""
        for name, module, against in track(found, "factorising", shown=self.progress):
            kind = "embedding" if isinstance(module, nn.Embedding) else "convolution"
            if against is not None:
                self.keep(name, kind, module, against)
            elif isinstance(module, nn.Embedding):
                self.install(name, kind, module, factorize_embedding(module, rule))
            elif isinstance(module, nn.Conv2d) and convolutions is not None:
                self.install(name, kind, module, factorize_convolution(module, convolutions, rule))

    def install(self, name: str, kind: str, module: nn.Module, made: tuple[nn.Module | None, int, float, str]) -> None:
        """Put what was made in the layer's place, unless there is a reason not to."""
        new, rank, error, reason = made
        if isinstance(new, FactoredLinear) and self.judge is not None:
            reason = self.judge(name, module, new) or ""
        if new is not None and not reason:
            try:
                replace_module(self.model, name, new)
            except StructureError as problem:
                reason = str(problem)
        before = _parameters(module)
        after = before if reason or new is None else _parameters(new)
        self.done.append(FactorizedLayer(name, kind, rank, error, before, after, reason))

    def keep(self, name: str, kind: str, module: nn.Module, reason: str) -> None:
        """Leave a layer as it is."""
        size = _parameters(module)
        self.done.append(FactorizedLayer(name, kind, 0, 0.0, size, size, reason))


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


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

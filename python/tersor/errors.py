"""What tersor raises. Catch `TersorError` to catch all of it."""

from __future__ import annotations


class TersorError(RuntimeError):
    """Bad input or a failed operation: what was asked, what was got, what is possible."""


class NativeError(TersorError):
    """A compiled part of tersor is missing or does not load.

    Attributes:
        cause: what went wrong, in one sentence.
        fix: what to do about it.
    """

    def __init__(self, cause: str, fix: str) -> None:
        super().__init__(cause, fix)
        self.cause = cause
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.cause} To fix it: {self.fix}"


class CheckpointError(TersorError):
    """A file is no tersor checkpoint, is damaged, or does not fit the model."""


class RecipeError(TersorError, ValueError):
    """A recipe names a step, field or value that does not exist."""


class SwapError(TersorError):
    """A layer cannot be replaced as asked."""


class PruneError(TersorError):
    """A model can't be pruned as asked."""


class StructureError(TersorError):
    """The structure of a model can't be changed as asked."""


class TrainError(TersorError):
    """A training can't run as asked, or can't go on."""


class GoneError(TrainError):
    """Another process of the group has gone."""


class DistillError(TersorError):
    """A student can't be taught as asked."""


class FactorizeError(TersorError):
    """A model can't be factorised as asked."""

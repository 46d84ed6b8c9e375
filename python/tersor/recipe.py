"""A recipe: an ordered list of compression steps and the modules they apply to, to and from TOML."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from tersor.errors import RecipeError

if TYPE_CHECKING:
    from tersor.pipeline import Run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclasses.dataclass(frozen=True)
class Step:
    """Base of all steps. A step is a frozen dataclass whose fields carry ``metadata={"choices": ...}``, the names as a
    tuple or a registry, or, for a number, ``metadata={"range": (smallest, largest)}``. None is left out of files.

    Attributes:
        name: what stands in a recipe file.
        edits: the step changes the float model, in ``apply``. One that does not says how layers are replaced at the
            end: a recipe's edits all come before it.
        lasting: what the step does is worth having even if no layer is replaced afterwards.
        settles: the step trains weights as they will be rounded, which no later step may change.
        storable: a file can hold the model after it, so that an interrupted recipe can go on from there.

    Raises:
        RecipeError: a field holds a value that is not among its choices or not in its range.
    """

    name: ClassVar[str] = ""
    edits: ClassVar[bool] = True
    lasting: ClassVar[bool] = True
    storable: ClassVar[bool] = True
    settles: ClassVar[bool] = False

    def uses(self) -> frozenset[str]:
        """Which of "calibration" and "train" the step looks at where it is given."""
        return frozenset()

    def reason_against(self, before: Sequence[Step]) -> str | None:
        """Why the step cannot follow these, or None. By default layers trained with rounding stay as they are."""
        rounding = next((step for step in before if step.settles), None)
        if rounding is None:
            return None
        return f"{rounding.name!r} trains weights as they are rounded, and it would change them: put it before"

    def apply(self, run: Run) -> None:
        """Change ``run.model`` in place and say in ``run.notes`` what was done; only steps that edit have this."""
        raise NotImplementedError(f"{type(self).__name__} does not edit models")

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            choices = spec.metadata.get("choices")
            value = getattr(self, spec.name)
            if choices is not None and value not in tuple(choices):
                raise RecipeError(f"step {self.name!r}: {spec.name} = {value!r} {_not_among('value', value, choices)}")
            if "range" in spec.metadata:
                least, most = spec.metadata["range"]
                if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                    raise RecipeError(
                        f"step {self.name!r}: {spec.name} = {value!r} is not a number from {least} to {most}"
                    )
                object.__setattr__(self, spec.name, float(value))


STEPS: dict[str, type[Step]] = {}
"""Every known step by its name in a recipe file."""

StepT = TypeVar("StepT", bound=type[Step])


def register_step(cls: StepT) -> StepT:
    """Class decorator that makes a step known to recipes, the command line and the tests.

    Raises:
        RecipeError: the class has no ``name``, or another step has the same one.
    """
    if not cls.name or STEPS.get(cls.name, cls) is not cls:
        raise RecipeError(f"step class {cls.__qualname__} needs a name of its own, got {cls.name!r}")
    STEPS[cls.name] = cls
    return cls


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What to do to a model.

    Args:
        steps: the steps, in order; at least one.
        include: shell wildcards on qualified module names (``"encoder.*"``); empty means every module.
        exclude: shell wildcards of modules to leave alone; they win over ``include``.

    Raises:
        RecipeError: no step, something that is not a step, or a pattern that is not a non-empty string.
    """

    steps: tuple[Step, ...]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __init__(self, steps: Iterable[Step], include: Iterable[str] = (), exclude: Iterable[str] = ()) -> None:
        object.__setattr__(self, "steps", tuple(steps))
        object.__setattr__(self, "include", _patterns("include", include))
        object.__setattr__(self, "exclude", _patterns("exclude", exclude))
        if not self.steps:
            raise RecipeError(f"a recipe needs at least one step; steps: {_listed(_known_steps())}")
        for step in self.steps:
            if not isinstance(step, Step):
                raise RecipeError(f"{step!r} is not a step; steps: {_listed(_known_steps())}")

    def check_order(self) -> None:
        """Check that every step can follow those before it.

        Raises:
            RecipeError: one cannot; the message says which and why.
        """
        names = ", ".join(step.name for step in self.steps)
        for index, step in enumerate(self.steps):
            before = self.steps[:index]
            last = next((other for other in before if not other.edits), None)
            reason = step.reason_against(before)
            if reason is None and last is not None:
                reason = f"it changes the float model, and {last.name!r} replaces the layers: put it before"
            if reason is not None:
                raise RecipeError(
                    f"step {index + 1} of the recipe ({names}), {step.name!r}, can't work there: {reason}"
                )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Build a recipe from plain data, as found in a TOML file.

        Raises:
            RecipeError: an unknown key, step, field or value; the message lists what exists.
        """
        _check_keys("recipe", data, ("steps", "include", "exclude"))
        steps = data.get("steps", [])
        if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
            raise RecipeError("steps must be a list of tables, written [[steps]] in TOML")
        return cls([_step(step) for step in steps], data.get("include", ()), data.get("exclude", ()))

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe file (UTF-8).

        Raises:
            RecipeError: the file can't be read, is not TOML, or does not describe a recipe.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"can't read the recipe {path}: {error}") from error
        try:
            return cls.from_toml_text(text)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error

    @classmethod
    def from_toml_text(cls, text: str) -> Recipe:
        """Parse the text of a recipe file.

        Raises:
            RecipeError: the text is not TOML, or does not describe a recipe.
        """
        try:
            data = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise RecipeError(f"not valid TOML: {error}") from error
        return cls.from_dict(data)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data: the inverse of :meth:`from_dict`."""
        steps = [{"step": step.name, **dataclasses.asdict(step)} for step in self.steps]
        return {"include": list(self.include), "exclude": list(self.exclude), "steps": steps}

    def to_toml(self, path: str | Path | None = None) -> str:
        """The recipe as TOML text, also written to ``path`` (UTF-8) where one is given."""
        data = self.to_dict()
        lines = [f"{key} = {_toml(data[key])}" for key in ("include", "exclude")]
        for step in data["steps"]:
            given = {key: value for key, value in step.items() if value is not None}
            lines += ["", "[[steps]]", *(f"{key} = {_toml(value)}" for key, value in given.items())]
        text = "\n".join(lines) + "\n"
        if path is not None:
            Path(path).write_text(text, encoding="utf-8", newline="\n")
        return text


def _known_steps() -> dict[str, type[Step]]:
    import tersor.steps  # noqa: F401  (importing it registers every step)

    return STEPS


def _step(data: Mapping[str, Any]) -> Step:
    known = _known_steps()
    name = data.get("step")
    if not isinstance(name, str) or name not in known:
        raise RecipeError(f"step = {name!r} {_not_among('step', name, known)}")
    cls = known[name]
    fields = [spec.name for spec in dataclasses.fields(cls)]
    _check_keys(f"step {name!r}", data, ("step", *fields))
    return cls(**{key: value for key, value in data.items() if key != "step"})


def _patterns(key: str, patterns: Iterable[str]) -> tuple[str, ...]:
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise RecipeError(f"{key} must be a list of strings, got {patterns!r}")
    found = tuple(patterns)
    for pattern in found:
        if not isinstance(pattern, str) or not pattern or not _encodable(pattern):
            raise RecipeError(f"{key}: {pattern!r} is not a wildcard on module names such as 'encoder.*'")
    return found


def _encodable(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _check_keys(where: str, data: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in data:
        if key not in known:
            raise RecipeError(f"{where}: {key!r} {_not_among('key', key, known)}")


def _not_among(kind: str, value: object, known: Iterable[object]) -> str:
    close = difflib.get_close_matches(str(value), [str(item) for item in known], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"is not a known {kind}{hint or '.'} Known: {_listed(known)}"


def _listed(known: Iterable[object]) -> str:
    return ", ".join(str(item) for item in known)


def _toml(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    raise RecipeError(f"a recipe file can't hold {value!r}")

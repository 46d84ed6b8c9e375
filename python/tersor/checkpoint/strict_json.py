"""JSON from strangers: bounded depth, item count and number length; no duplicate keys, no NaN."""

from __future__ import annotations

import json
import math
import reprlib
from typing import Any

from tersor.errors import CheckpointError

Json = Any  # what json.loads gives: None, bool, int, float, str, list, dict

MAX_ITEMS = 1_000_000  # brackets and commas: bounds the parsed objects to some 150 MB
MAX_NUMBER_CHARS = 40
MAX_MESSAGE_CHARS = 400

_CHUNK = 1 << 18
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def show(value: object) -> str:
    """Representation of an untrusted value for a message: short, printable, one line."""
    return _plain(_short.repr(value))


def clip(text: str) -> str:
    """A message from elsewhere that may quote untrusted values: short, printable, one line."""
    return _plain(text if len(text) <= MAX_MESSAGE_CHARS else text[:MAX_MESSAGE_CHARS] + "...")


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text).encode("ascii", "backslashreplace").decode()


def parse_object(data: bytes, what: str, *, max_depth: int) -> dict[str, Json]:
    """Parses ``data`` as one JSON object; ``what`` names it in messages.

    Raises CheckpointError for anything that is not strict UTF-8 JSON within the bounds.
    """
    _check_structure(data, what, max_depth)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_int=_bounded_int,
            parse_float=_finite_float,
        )
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{what} is not valid UTF-8") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{what} is not valid JSON: {error.msg} at character {error.pos}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is not a JSON object")
    return value


def _check_structure(data: bytes, what: str, max_depth: int) -> None:
    """Counts brackets and commas outside strings, before the parser builds a single object."""
    quotes_are_ends = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    items = depth = 0
    inside = False
    for start in range(0, len(quotes_are_ends), _CHUNK):
        pieces = quotes_are_ends[start : start + _CHUNK].split(b'"')  # strings and what is between them, in turn
        outside = b"".join(pieces[inside::2])
        inside ^= len(pieces) % 2 == 0
        brackets = outside.translate(None, _NOT_BRACKETS)
        items += len(brackets) + outside.count(b",")
        if items > MAX_ITEMS:
            raise CheckpointError(f"{what} has more than {MAX_ITEMS} items")
        for bracket in brackets:
            depth += 1 if bracket in b"[{" else -1
            if depth > max_depth:
                raise CheckpointError(f"{what} is nested deeper than {max_depth} levels")


def _unique_keys(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for key, value in pairs:
        if key in found:
            raise CheckpointError(f"the key {show(key)} occurs twice")
        found[key] = value
    return found


def _no_constant(text: str) -> Json:
    raise CheckpointError(f"{text} is not a JSON number")


def _bounded_int(text: str) -> int:
    if len(text) > MAX_NUMBER_CHARS:
        raise CheckpointError(f"a number of {len(text)} characters")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text) if len(text) <= MAX_NUMBER_CHARS else math.inf
    if not math.isfinite(value):
        raise CheckpointError(f"the number {show(text)} is out of range")
    return value

"""What the command line is given, turned into Python objects: a model, example inputs, data."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from tersor.errors import CheckpointError, TersorError

_DATA_KEYS = {"example_inputs", "other_inputs", "calibration", "train", "evaluate"}
_EXAMPLE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?")


def load_model(source: str) -> Any:
    """The float model that MODEL names, in eval mode.

    Raises:
        typer.BadParameter: it names no model.
        TersorError: the factory or transformers failed.
    """
    from torch import nn

    path = Path(source)
    if path.is_dir():
        return _hugging_face(path).eval()
    if path.is_file():
        return _float_file(path)
    if ":" not in source:
        kinds = "neither package.module:factory nor the folder of a Hugging Face model"
        raise typer.BadParameter(f"{source!r} is {kinds}", param_hint="MODEL")
    model = call_factory(source, "MODEL")
    if not isinstance(model, nn.Module):
        raise TersorError(f"{source} gave a {type(model).__name__}, not a torch.nn.Module")
    return model.eval()


def _float_file(path: Path) -> Any:
    """The model of a tersor file without accelerated layers, which names a class that can be built from it."""
    from tersor.checkpoint import inspect, load

    try:
        info = inspect(path)
    except (CheckpointError, OSError) as error:
        reason = f"{path} is a file; a model needs its code as well, so name a factory: package.module:factory"
        raise typer.BadParameter(reason, param_hint="MODEL") from error
    if info.kinds:
        kinds = ", ".join(f"{count} {kind}" for kind, count in info.kinds.items())
        reason = f"{path} is compressed already ({kinds}); compress the float model that it was made from"
        raise typer.BadParameter(reason, param_hint="MODEL")
    return load(path)


def _hugging_face(folder: Path) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = config.get("architectures") or ["AutoModel"]
    except FileNotFoundError as error:
        raise typer.BadParameter(f"the folder {folder} holds no config.json", param_hint="MODEL") from error
    except (OSError, ValueError, AttributeError) as error:
        raise TersorError(f"{folder / 'config.json'} can't be read: {error}") from error
    try:
        import transformers
    except ImportError as error:
        raise TersorError("a Hugging Face folder needs transformers: pip install 'transformers>=4.50'") from error
    cls = getattr(transformers, str(names[0]), transformers.AutoModel)
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return cls.from_pretrained(folder)
    except Exception as error:
        raise TersorError(f"transformers can't load {folder}: {_first_line(error)}") from error


def call_factory(source: str, what: str) -> Any:
    """The object that ``package.module:name`` names, called if it is a function or class.

    Raises:
        typer.BadParameter: there is no such module or name.
        TersorError: importing or calling it failed.
    """
    from torch import nn

    module_name, _, attribute = source.partition(":")
    if not module_name or not attribute:
        raise typer.BadParameter(f"{source!r} is not of the form package.module:factory", param_hint=what)
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise typer.BadParameter(f"there is no module {error.name!r}", param_hint=what) from error
        raise TersorError(f"{module_name} can't be imported: {_first_line(error)}") from error
    except Exception as error:
        raise TersorError(f"{module_name} can't be imported: {_first_line(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise typer.BadParameter(f"{module_name} has no {attribute!r}", param_hint=what)
        found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        return found
    try:
        return found()
    except Exception as error:
        raise TersorError(f"{source} failed: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def load_data(source: str) -> dict[str, Any]:
    """Keyword arguments for ``compress`` from a data factory.

    The factory returns the example inputs, or a mapping with some of the keys ``example_inputs``, ``other_inputs``,
    ``calibration``, ``train`` and ``evaluate``.
    """
    data = call_factory(source, "--data")
    if isinstance(data, Mapping) and data and set(data) <= _DATA_KEYS:
        return dict(data)
    return {"example_inputs": data}


def make_example(texts: Sequence[str], vocabulary: int | None) -> Any:
    """Example inputs from ``[NAME=]SHAPE[:DTYPE]`` texts: a tuple, or a dict where they are named.

    Floats are drawn from a normal distribution, integers below ``vocabulary`` (or 100); ``:ones`` means int64 ones.

    Raises:
        typer.BadParameter: a text is not of that form, or only some are named.
    """
    named: dict[str, Any] = {}
    plain: list[Any] = []
    for text in texts:
        match = _EXAMPLE.fullmatch(text)
        if match is None:
            form = "[NAME=]SHAPE[:DTYPE], such as 8x384 or input_ids=1x128:int64"
            raise typer.BadParameter(f"{text!r} is not of the form {form}", param_hint="--example")
        value = _random(tuple(int(size) for size in match["shape"].split("x")), match["dtype"], vocabulary)
        if match["name"]:
            named[match["name"]] = value
        else:
            plain.append(value)
    if named and plain:
        raise typer.BadParameter("name all inputs or none", param_hint="--example")
    return named or tuple(plain)


def _random(shape: tuple[int, ...], dtype: str | None, vocabulary: int | None) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    if dtype == "ones":
        return torch.ones(shape, dtype=torch.int64)
    kind = getattr(torch, dtype or "float32", None)
    if not isinstance(kind, torch.dtype) or kind.is_complex or kind == torch.bool:
        raise typer.BadParameter(f"{dtype!r} is no dtype for inputs", param_hint="--example")
    if kind.is_floating_point:
        return torch.randn(shape, generator=generator).to(kind)
    return torch.randint(0, vocabulary or 100, shape, generator=generator).to(kind)

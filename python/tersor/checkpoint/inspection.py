"""What a file holds, read from its header alone. Nothing here needs torch or native code."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tersor.checkpoint.opened import open_checked
from tersor.report import wording

SCHEMA = "tersor.file/1"


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: its dtype in the names of safetensors (F32, I8, ...), its shape and its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclasses.dataclass(frozen=True)
class LayerInfo:
    """One replaced layer: its kind and configuration, its bytes and tensors, further names of the same module."""

    name: str
    kind: str
    config: dict[str, Any]
    nbytes: int
    tensors: tuple[TensorInfo, ...]
    aliases: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """A file of ``tersor.save``.

    Attributes:
        path: as given.
        file_bytes, header_bytes: sizes; the rest of the file is tensors.
        format_version: of the file.
        tersor_version: of the writer.
        model_class: the class of the saved model, for information.
        rebuild_class: the transformers class that ``load`` builds where it gets no model; None where it needs one.
        layers: the replaced layers.
        tensors: all other tensors.
        aliases: further names of tied tensors, and the name that is stored.
        edits: the kinds of the changes of the model's structure, in their order.
    """

    path: str
    file_bytes: int
    header_bytes: int
    format_version: int
    tersor_version: str
    model_class: str
    rebuild_class: str | None
    layers: tuple[LayerInfo, ...]
    tensors: tuple[TensorInfo, ...]
    aliases: dict[str, str]
    edits: tuple[str, ...] = ()

    @property
    def kinds(self) -> dict[str, int]:
        """How many layers of each kind there are."""
        return dict(Counter(layer.kind for layer in self.layers))

    @property
    def layer_bytes(self) -> int:
        """Bytes of the replaced layers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def plain_bytes(self) -> int:
        """Bytes of all other tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def table(self, width: int = 100, color: bool = False) -> str:
        """The contents as text. Entries that differ only in the numbers within their names share a line.

        Args:
            width: columns to fit into.
            color: with ANSI colours.
        """
        out = StringIO()
        console = Console(
            file=out, width=width, force_terminal=color, color_system="standard" if color else None, highlight=False
        )
        console.print(_rows(self))
        for line in _headline(self):
            console.print(Text(line, style="bold"))
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a ``schema`` key."""
        sums = {"kinds": self.kinds, "layer_bytes": self.layer_bytes, "plain_bytes": self.plain_bytes}
        return {"schema": SCHEMA, **dataclasses.asdict(self), **sums}

    def to_json(self, path: str | Path | None = None) -> str:
        """The contents as JSON text, also written to ``path`` where one is given."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def __str__(self) -> str:
        return self.table()


def inspect(path: str | os.PathLike[str]) -> FileInfo:
    """Reads the header of a file and checks it, without reading a tensor. Kinds unknown to this tersor are shown too.

    Raises:
        CheckpointError: the file is no tersor file, has another format version, or breaks a rule of docs/format.md.
    """
    with open_checked(path) as opened:
        manifest = opened.manifest
        infos = {name: TensorInfo(name, e.dtype, e.shape, e.nbytes) for name, e in opened.entries.items()}
        layers = []
        for layer in manifest.layers:
            tensors = tuple(infos[entry.name] for entry in opened.layer_entries[layer.name].values())
            size = sum(tensor.nbytes for tensor in tensors)
            layers.append(LayerInfo(layer.name, layer.kind, layer.config, size, tensors, layer.aliases))
        return FileInfo(
            path=os.fspath(path),
            file_bytes=opened.file_bytes,
            header_bytes=opened.data_start,
            format_version=opened.format_version,
            tersor_version=opened.written_by,
            model_class=manifest.model_class,
            rebuild_class=manifest.rebuild.model_class if manifest.rebuild else None,
            layers=tuple(layers),
            tensors=tuple(infos[name] for name in manifest.tensors),
            aliases=dict(manifest.aliases),
            edits=tuple(edit.kind for edit in manifest.edits),
        )


def _headline(info: FileInfo) -> list[str]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in info.kinds.items()) or "no replaced layers"
    rebuild = f"transformers.{info.rebuild_class}, needs no model=" if info.rebuild_class else "load needs model="
    edits = ", ".join(f"{count} {kind}" for kind, count in Counter(info.edits).items())
    return [
        f"{wording.size(info.file_bytes)}: {kinds} in {wording.size(info.layer_bytes)}, "
        f"{len(info.tensors)} plain tensors in {wording.size(info.plain_bytes)}",
        f"format version {info.format_version}, written by tersor {info.tersor_version}",
        f"model {info.model_class}; {rebuild}",
        *([f"its structure was changed by {edits}"] if edits else []),
    ]


def _extents(layer: LayerInfo) -> str:
    """``out x in`` where the configuration says so, else the shape of the tensor of most dimensions."""
    named = [layer.config.get(key) for key in ("out_features", "in_features")]
    if all(type(value) is int for value in named):
        return "x".join(map(str, named))
    return "x".join(str(size) for size in max((t.shape for t in layer.tensors), key=len, default=()))


def _rows(info: FileInfo) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=False, padding=(0, 1), pad_edge=False)
    table.add_column("name", overflow="fold", ratio=3)
    for title in ("n", "kind", "shape", "bytes each"):
        table.add_column(title, justify="right", no_wrap=title != "kind")
    groups: dict[tuple[str, str, str, int], list[str]] = {}
    for layer in info.layers:
        shape = _extents(layer)
        groups.setdefault((wording.family(layer.name), layer.kind, shape, layer.nbytes), []).append(layer.name)
    for tensor in info.tensors:
        shape = "x".join(map(str, tensor.shape))
        groups.setdefault((wording.family(tensor.name), tensor.dtype, shape, tensor.nbytes), []).append(tensor.name)
    for (_, kind, shape, nbytes), names in groups.items():
        name = wording.joined(names) if len(names) > 1 else names[0] or "(model)"
        table.add_row(Text(name), str(len(names)), Text(kind), shape or "-", wording.size(nbytes))
    return table

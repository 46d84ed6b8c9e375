"""The manifest: what the tensors of a file mean. One JSON string in the container's metadata, read without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tersor.checkpoint.container import ITEM_BYTES, TensorEntry, is_name
from tersor.checkpoint.strict_json import Json, parse_object, show
from tersor.errors import CheckpointError

FORMAT = "tersor"
FORMAT_VERSION = 2
MAX_EDITS = 4096
MAX_MANIFEST_DEPTH = 32

FORMAT_KEY = "format"
VERSION_KEY = "tersor.format_version"
WRITER_KEY = "tersor.version"
MANIFEST_KEY = "tersor.manifest"


@dataclass(frozen=True)
class LayerEntry:
    """One replaced layer. Its tensors are called ``NAME.KEY``; ``aliases`` are further places of the same module."""

    name: str
    kind: str
    config: dict[str, Json]
    aliases: tuple[str, ...] = ()

    def tensor_name(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key


@dataclass(frozen=True)
class Edit:
    """One change of the float model's structure, made before layers are replaced."""

    kind: str
    config: dict[str, Json]


@dataclass(frozen=True)
class Rebuild:
    """How to build the float model again: a class of the library ``transformers``, by name, and its configuration."""

    model_class: str
    config: dict[str, Json]
    attention: str | None = None
    library: str = "transformers"


@dataclass(frozen=True)
class Manifest:
    """``tensors`` are the plain ones; ``aliases`` maps further names of tied tensors to the stored name.

    ``buffers`` gives the dtypes of the non-persistent buffers, whose values the fresh model brings.
    """

    layers: tuple[LayerEntry, ...]
    tensors: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    buffers: Mapping[str, str] = field(default_factory=dict)
    model_class: str = ""
    rebuild: Rebuild | None = None
    edits: tuple[Edit, ...] = ()

    def layer_places(self) -> Iterator[tuple[LayerEntry, str]]:
        """Every place of every layer, aliases included."""
        for layer in self.layers:
            yield from ((layer, place) for place in (layer.name, *layer.aliases))


def to_metadata(manifest: Manifest, tersor_version: str) -> dict[str, str]:
    """The container's metadata for a manifest; the same manifest gives the same text."""
    layers = [
        {"name": layer.name, "kind": layer.kind, "config": layer.config, "aliases": list(layer.aliases)}
        for layer in manifest.layers
    ]
    fields: dict[str, Json] = {
        "layers": layers,
        "tensors": list(manifest.tensors),
        "aliases": dict(manifest.aliases),
        "buffers": dict(manifest.buffers),
        "model_class": manifest.model_class,
        "rebuild": None if manifest.rebuild is None else vars(manifest.rebuild),
        "edits": [vars(edit) for edit in manifest.edits],
    }
    return {
        FORMAT_KEY: FORMAT,
        VERSION_KEY: str(FORMAT_VERSION),
        WRITER_KEY: tersor_version,
        MANIFEST_KEY: json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False),
    }


def check_version(metadata: Mapping[str, str], tersor_version: str) -> None:
    """Raises CheckpointError unless the metadata names this format in the version read here."""
    if metadata.get(FORMAT_KEY) != FORMAT or VERSION_KEY not in metadata:
        raise CheckpointError("a plain safetensors file without a tersor manifest; tersor.save writes one")
    found = metadata[VERSION_KEY]
    if found not in map(str, range(1, FORMAT_VERSION + 1)):
        raise CheckpointError(
            f"the file has format version {show(found)}, written by tersor {show(metadata.get(WRITER_KEY, ''))}; "
            f"this is tersor {tersor_version}, which reads format versions 1 to {FORMAT_VERSION}"
        )
    expected = {FORMAT_KEY, VERSION_KEY, WRITER_KEY, MANIFEST_KEY}
    if metadata.keys() != expected:
        raise CheckpointError(f"the metadata has the keys {show(sorted(metadata))}, expected {sorted(expected)}")
    if not metadata[WRITER_KEY].isprintable() or len(metadata[WRITER_KEY]) > 100:
        raise CheckpointError(f"the metadata has the invalid tersor version {show(metadata[WRITER_KEY])}")


def from_metadata(metadata: Mapping[str, str]) -> Manifest:
    """Parses the manifest and checks every field of it, though not yet against the tensors."""
    try:
        text = metadata[MANIFEST_KEY].encode("utf-8")
    except UnicodeEncodeError as error:
        raise CheckpointError("the manifest is not valid UTF-8") from error
    fields = parse_object(text, "the manifest", max_depth=MAX_MANIFEST_DEPTH)
    expected = {"layers", "tensors", "aliases", "buffers", "model_class", "rebuild"}
    _check_keys(fields, expected if metadata[VERSION_KEY] == "1" else expected | {"edits"}, "the manifest")
    manifest = Manifest(
        layers=tuple(_layer(item) for item in _list(fields["layers"], "layers")),
        tensors=_names(fields["tensors"], "tensors"),
        aliases=_aliases(fields["aliases"]),
        buffers=_buffers(fields["buffers"]),
        model_class=_text(fields["model_class"], "model_class"),
        rebuild=_rebuild(fields["rebuild"]),
        edits=_edits(fields.get("edits", [])),
    )
    _check_places(manifest)
    return manifest


def match_entries(manifest: Manifest, entries: Mapping[str, TensorEntry]) -> dict[str, dict[str, TensorEntry]]:
    """Gives each tensor of the file its one owner: the plain list or a layer. Returns {layer name: {key: entry}}."""
    owned: dict[str, dict[str, TensorEntry]] = {layer.name: {} for layer in manifest.layers}
    plain = set(manifest.tensors)
    if missing := sorted(plain - entries.keys()):
        raise CheckpointError(f"the manifest lists tensors that the file does not hold: {show(missing)}")
    for name in entries.keys() - plain:
        owner = next((prefix for prefix in _prefixes(name) if prefix in owned), None)
        if owner is None:
            raise CheckpointError(f"the file holds a tensor that the manifest does not list: {show(name)}")
        owned[owner][name[len(owner) + 1 :] if owner else name] = entries[name]
    return owned


def _prefixes(name: str) -> Iterator[str]:
    """The names of all modules above ``name``, the root's "" first."""
    yield ""
    position = name.find(".")
    while position >= 0:
        yield name[:position]
        position = name.find(".", position + 1)


def _check_places(manifest: Manifest) -> None:
    """No name twice, nothing inside a layer, aliases of stored plain tensors only (so there are no chains or loops)."""
    places = [place for _, place in manifest.layer_places()]
    names = [*manifest.tensors, *manifest.aliases, *manifest.buffers]
    if len(set(names)) < len(names) or len(set(places)) < len(places):
        raise CheckpointError("the manifest gives a name twice")
    taken = set(places)
    for name in [*names, *(place for place in places if place)]:
        inside = next((prefix for prefix in _prefixes(name) if prefix in taken), None)
        if inside is not None:
            raise CheckpointError(f"the manifest puts {show(name)} inside the replaced layer {show(inside)}")
        if name in taken and name in names:
            raise CheckpointError(f"the manifest has {show(name)} both as a tensor and as a layer")
    stored = set(manifest.tensors)
    for alias, target in manifest.aliases.items():
        if target not in stored:
            raise CheckpointError(f"the alias {show(alias)} points to {show(target)}, which is no stored plain tensor")


def _layer(item: Json) -> LayerEntry:
    if not isinstance(item, dict):
        raise CheckpointError(f"the manifest has an invalid layer {show(item)}")
    _check_keys(item, {"name", "kind", "config", "aliases"}, "a layer of the manifest")
    name, kind, config = item["name"], item["kind"], item["config"]
    if name != "" and not is_name(name):
        raise CheckpointError(f"the manifest has the invalid layer name {show(name)}")
    if not isinstance(kind, str) or not kind.isidentifier() or not isinstance(config, dict):
        raise CheckpointError(f"the layer {show(name)} has an invalid kind or configuration")
    return LayerEntry(name, kind, config, _names(item["aliases"], f"aliases of {show(name)}"))


def _edits(item: Json) -> tuple[Edit, ...]:
    found = []
    for edit in _list(item, "edits"):
        if not isinstance(edit, dict):
            raise CheckpointError(f"the manifest has an invalid edit {show(edit)}")
        _check_keys(edit, {"kind", "config"}, "an edit of the manifest")
        kind, config = edit["kind"], edit["config"]
        if not isinstance(kind, str) or not kind.isidentifier() or not isinstance(config, dict):
            raise CheckpointError(f"the manifest has an edit of an invalid kind or configuration: {show(kind)}")
        found.append(Edit(kind, config))
    if len(found) > MAX_EDITS:
        raise CheckpointError(f"the manifest has {len(found)} edits; the limit is {MAX_EDITS}")
    return tuple(found)


def _rebuild(item: Json) -> Rebuild | None:
    if item is None:
        return None
    if not isinstance(item, dict):
        raise CheckpointError(f"the manifest has an invalid rebuild entry {show(item)}")
    _check_keys(item, {"library", "model_class", "config", "attention"}, "the rebuild entry of the manifest")
    if item["library"] != "transformers":
        raise CheckpointError(f"the manifest asks for the unknown library {show(item['library'])}")
    if not isinstance(item["model_class"], str) or not item["model_class"].isidentifier():
        raise CheckpointError(f"the manifest has the invalid model class {show(item['model_class'])}")
    if not isinstance(item["config"], dict):
        raise CheckpointError("the manifest has a model configuration that is not an object")
    if item["attention"] is not None and not isinstance(item["attention"], str):
        raise CheckpointError(f"the manifest has the invalid attention {show(item['attention'])}")
    return Rebuild(**item)


def _aliases(item: Json) -> dict[str, str]:
    if not isinstance(item, dict) or not all(is_name(name) for pair in item.items() for name in pair):
        raise CheckpointError("the aliases of the manifest are not an object of names")
    return item


def _buffers(item: Json) -> dict[str, str]:
    if not isinstance(item, dict) or not all(is_name(name) for name in item):
        raise CheckpointError("the buffers of the manifest are not an object of names")
    for name, dtype in item.items():
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            raise CheckpointError(f"the buffer {show(name)} has the unknown dtype {show(dtype)}")
    return item


def _names(item: Json, what: str) -> tuple[str, ...]:
    for name in _list(item, what):
        if not is_name(name):
            raise CheckpointError(f"the manifest has the invalid name {show(name)} in {what}")
    return tuple(item)


def _list(item: Json, what: str) -> list[Json]:
    if not isinstance(item, list):
        raise CheckpointError(f"the manifest has {what} that is not a list")
    return item


def _text(item: Json, what: str) -> str:
    if not isinstance(item, str) or not item.isprintable() or len(item) > 1000:
        raise CheckpointError(f"the manifest has the invalid {what} {show(item)}")
    return item


def _check_keys(item: Mapping[str, Json], expected: set[str], what: str) -> None:
    if item.keys() != expected:
        raise CheckpointError(f"{what} has the keys {show(sorted(item))}, expected {sorted(expected)}")

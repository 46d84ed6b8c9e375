"""Attacks on the manifest: versions, fields, names, aliases."""

from __future__ import annotations

from hostile.parts import Cases, Parts

MANIFEST = case = Cases()

# --- Versions and fields.

for _name, _version in [("next", "3"), ("zero", "0"), ("text", "one"), ("padded", "01"), ("huge", "9" * 9999)]:
    case.change(
        f"version_{_name}",
        r"format version '.*', written by tersor '.*'; this is tersor .*, which reads format versions 1 to 2",
        lambda parts, v=_version: parts.metadata.__setitem__("tersor.format_version", v),
    )

for _name, _key, _value, _message in [
    ("format_other", "format", "pt", "plain safetensors file"),
    ("metadata_extra", "more", "x", "the metadata has the keys"),
    ("writer_escape", "tersor.version", "\x1b[2J", "invalid tersor version"),
    ("writer_long", "tersor.version", "1" * 9999, "invalid tersor version"),
]:
    case.change(_name, _message, lambda parts, k=_key, v=_value: parts.metadata.__setitem__(k, v))

for _name, _key in [("format_missing", "format"), ("version_missing", "tersor.format_version")]:
    case.change(_name, "plain safetensors file", lambda parts, k=_key: parts.metadata.__delitem__(k))

for _name, _text, _message in [
    ("empty", "", "the manifest is not valid JSON"),
    ("list", "[]", "the manifest is not a JSON object"),
    ("string", '"x"', "the manifest is not a JSON object"),
    ("no_fields", "{}", "the manifest has the keys"),
    ("surrogate", '"\ud800"', "the manifest is not valid UTF-8"),
    ("duplicate", '{"layers":[],"layers":[]}', "the manifest: the key 'layers' occurs twice"),
    ("deep", "[" * 9999, "the manifest is nested deeper than 32 levels"),
    ("nan", '{"layers":NaN}', "NaN is not a JSON number"),
]:
    case.change(f"manifest_{_name}", _message, lambda parts, text=_text: parts.pack_manifest(text))

for _key in ("layers", "tensors", "aliases", "buffers", "model_class", "rebuild", "edits"):
    case.change(f"manifest_without_{_key}", "the manifest has the keys", lambda parts, k=_key: parts.manifest.pop(k))
    case.change(f"manifest_{_key}_number", "manifest", lambda parts, k=_key: parts.manifest.__setitem__(k, 7))

for _name, _key, _value, _message in [
    ("extra_field", "pickle", "gASV", "the manifest has the keys"),
    ("layers_of_text", "layers", ["first"], "invalid layer 'first'"),
    ("tensors_of_numbers", "tensors", [1], "invalid name 1"),
    ("tensors_of_lists", "tensors", [["embed.weight"]], "invalid name"),
    ("aliases_of_numbers", "aliases", {"head.weight": 1}, "not an object of names"),
    ("buffers_unknown_dtype", "buffers", {"steps": "F31"}, "unknown dtype 'F31'"),
    ("buffers_list_dtype", "buffers", {"steps": ["F32"]}, "unknown dtype"),
    ("model_class_escape", "model_class", "a\x1b[2Jb", "invalid model_class"),
    ("model_class_long", "model_class", "a" * 9999, "invalid model_class"),
]:
    case.change(f"manifest_{_name}", _message, lambda parts, k=_key, v=_value: parts.manifest.__setitem__(k, v))


# --- Names and aliases.


def _aliases(name: str, message: str, aliases: dict[str, str]) -> None:
    case.change(name, message, lambda parts: parts.manifest.__setitem__("aliases", aliases))


_aliases("alias_to_itself", "points to 'head.weight', which is no stored", {"head.weight": "head.weight"})
_aliases("alias_loop", "which is no stored", {"head.weight": "other.weight", "other.weight": "head.weight"})
_aliases("alias_chain", "points to 'other.weight'", {"head.weight": "other.weight", "other.weight": "embed.weight"})
_aliases("alias_to_nothing", "points to 'nowhere'", {"head.weight": "nowhere"})
_aliases("alias_to_layer", "points to 'first.weight_q'", {"head.weight": "first.weight_q"})
_aliases("alias_of_stored", "gives a name twice", {"embed.weight": "embed.weight"})
_aliases("alias_inside_layer", "inside the replaced layer 'first'", {"first.weight": "embed.weight"})
_aliases("alias_of_layer", "both as a tensor and as a layer", {"first": "embed.weight"})


@case("gives a name twice")
def layer_twice(parts: Parts) -> None:
    parts.manifest["layers"].append(parts.manifest["layers"][0])


@case("gives a name twice")
def layer_alias_of_itself(parts: Parts) -> None:
    parts.layer("first")["aliases"] = ["first"]


@case("gives a name twice")
def layer_alias_of_other_layer(parts: Parts) -> None:
    parts.layer("first")["aliases"] = ["second"]


@case("inside the replaced layer 'first'")
def layer_inside_layer(parts: Parts) -> None:
    parts.layer("second")["name"] = "first.second"


@case("inside the replaced layer ''")
def layer_is_everything(parts: Parts) -> None:
    parts.layer("second")["name"] = ""


@case("inside the replaced layer 'first'")
def layer_tensor_also_plain(parts: Parts) -> None:
    parts.manifest["tensors"].append("first.weight_q")


@case("gives a name twice")
def tensor_twice(parts: Parts) -> None:
    parts.manifest["tensors"].append("embed.weight")


@case("lists tensors that the file does not hold")
def tensor_listed_but_absent(parts: Parts) -> None:
    parts.manifest["tensors"].append("norm.extra")


@case("lists tensors that the file does not hold")
def tensor_removed(parts: Parts) -> None:
    parts.remove("norm.weight")


@case("holds a tensor that the manifest does not list")
def tensor_added(parts: Parts) -> None:
    parts.insert("norm.extra", "U8", [3], b"abc")


@case("'first' has the tensors", header_only=False)
def layer_tensor_added(parts: Parts) -> None:
    parts.insert("first.code", "U8", [3], b"abc")


@case("'first' has the tensors", header_only=False)
def layer_tensor_removed(parts: Parts) -> None:
    parts.remove("first.weight_scale")


@case("differ; missing in the file: 'norm.weight'", header_only=False)
def tensor_removed_consistently(parts: Parts) -> None:
    parts.remove("norm.weight")
    parts.manifest["tensors"].remove("norm.weight")


@case("differ; unknown to the model: 'norm.extra'", header_only=False)
def tensor_added_consistently(parts: Parts) -> None:
    parts.insert("norm.extra", "U8", [3], b"abc")
    parts.manifest["tensors"].append("norm.extra")


@case("no modules for the layers 'third'", header_only=False)
def layer_alias_unknown_to_model(parts: Parts) -> None:
    parts.layer("first")["aliases"] = ["third"]


@case("has the tensors", header_only=False)
def layer_without_tensors(parts: Parts) -> None:
    parts.manifest["layers"].append({**parts.layer("first"), "name": "third"})

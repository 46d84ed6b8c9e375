"""Attacks on the manifest: versions, kinds, configurations, names, aliases, and on the values of tensors."""

from __future__ import annotations

import struct
from typing import Any

from hostile.parts import Cases, Parts

MANIFEST = case = Cases()

# --- Versions and fields.

for _name, _version in [("next", "2"), ("zero", "0"), ("text", "one"), ("padded", "01"), ("huge", "9" * 9999)]:
    case.change(
        f"version_{_name}",
        r"format version '.*', written by tersor '.*'; this is tersor .*, which reads format version 1",
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

for _key in ("layers", "tensors", "aliases", "buffers", "model_class", "rebuild"):
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


# --- Kinds and configurations.


def _layer(name: str, message: str, change: dict[str, Any], *, header_only: bool = False) -> None:
    case.change(f"layer_{name}", message, lambda parts: parts.layer("first").update(change), header_only=header_only)


def _config(name: str, message: str, **change: Any) -> None:
    case.change(
        f"config_{name}", message, lambda parts: parts.layer("first")["config"].update(change), header_only=False
    )


_layer("kind_unknown", "unknown kind 'int9_linear'; known: .*int8_linear", {"kind": "int9_linear"})
_layer("kind_path", "invalid kind", {"kind": "os.system"}, header_only=True)
_layer("kind_number", "invalid kind", {"kind": 8}, header_only=True)
_layer("kind_empty", "invalid kind", {"kind": ""}, header_only=True)
_layer("config_list", "invalid kind or configuration", {"config": []}, header_only=True)
_layer("config_empty", "invalid configuration", {"config": {}})
_layer("extra_field", "a layer of the manifest has the keys", {"code": "x"}, header_only=True)
_layer("name_number", "invalid layer name", {"name": 1}, header_only=True)
_layer("name_escape", "invalid layer name", {"name": "a\x1b[2J"}, header_only=True)
_layer("name_other", "does not list", {"name": "fourth"}, header_only=True)
_layer("aliases_text", "not a list", {"aliases": "second"}, header_only=True)


@case(r"weight_q' is I8 \(7, 6\), expected I8 \(7, 8\)", header_only=False)
def other_kind_other_features(parts: Parts) -> None:
    layer = parts.layer("first")
    layer.update(kind="int8_conv1d", config={**layer["config"], "in_features": 8})


_config("in_features_mismatch", r"is I8 \(7, 6\), expected I8 \(7, 5\)", in_features=5)
_config("out_features_mismatch", "expected", out_features=8)
_config("features_swapped", r"expected I8 \(6, 7\)", in_features=7, out_features=6)
_config("features_huge", "invalid configuration: in_features", in_features=1 << 60)
_config("features_max", "expected", in_features=(1 << 31) - 1, out_features=(1 << 31) - 1)
_config("features_zero", "invalid configuration: in_features", in_features=0)
_config("features_negative", "invalid configuration: in_features", in_features=-6)
_config("features_float", "invalid configuration: in_features", in_features=6.0)
_config("features_text", "invalid configuration: in_features", in_features="6")
_config("features_list", "invalid configuration: in_features", in_features=[6])
_config("bias_false", "has the tensors", bias=False)
_config("bias_number", "invalid configuration: bias", bias=1)
_config("dtype_unknown", "invalid configuration: dtype", dtype="float31")
_config("dtype_other", "expected BF16", dtype="bfloat16")
_config("dtype_list", "invalid configuration: dtype", dtype=["float32"])
_config("activation_unknown", "invalid configuration: activation", activation="eval")
_config("activation_object", "invalid configuration: activation", activation={"relu": 1})
_config("x_scale_negative", "invalid configuration: x_scale", x_scale=-1.0)
_config("x_scale_text", "invalid configuration: x_scale", x_scale="0")
_config("x_scale_bool", "invalid configuration: x_scale", x_scale=True)
_config("x_scale_denormal", "invalid configuration: x_scale", x_scale=1e-44)
_config("x_scale_double", "invalid configuration: x_scale", x_scale=1e300)
_config("x_zero_point_negative", "invalid configuration: x_zero_point", x_zero_point=-1)
_config("x_zero_point_large", "invalid configuration: x_zero_point", x_zero_point=256)
_config("x_zero_point_float", "invalid configuration: x_zero_point", x_zero_point=1.5)
_config("smoothed_number", "invalid configuration: smoothed", smoothed=1)
_config("smoothed_null", "invalid configuration: smoothed", smoothed=None)
_config("smoothed_without_values", r"'first' has the tensors .*expected .*'input_scale'", smoothed=True)
_config("extra_key", "invalid configuration", hook="os.system")
_config("long_key", "invalid configuration", **{"x" * 99_999: 1})


@case(r"is F8_E4M3 \(7, 6\), expected I8", header_only=False)
def weight_of_other_dtype(parts: Parts) -> None:
    parts.header["first.weight_q"]["dtype"] = "F8_E4M3"


@case("expected I8", header_only=False)
def weight_unsigned(parts: Parts) -> None:
    parts.header["first.weight_q"]["dtype"] = "U8"


@case("invalid configuration", header_only=False)
def config_without_smoothed(parts: Parts) -> None:
    del parts.layer("first")["config"]["smoothed"]


@case(r"'second' has the tensors \['input_scale', ", header_only=False)
def values_without_smoothed(parts: Parts) -> None:
    parts.layer("second")["config"]["smoothed"] = False


@case(r"'second' has the tensors \['weight_q', ", header_only=False)
def input_scale_removed(parts: Parts) -> None:
    parts.remove("second.input_scale")


@case(r"second.input_scale' is F32 \(7, 1\), expected F32 \(7,\)", header_only=False)
def input_scale_of_two_dimensions(parts: Parts) -> None:
    parts.header["second.input_scale"]["shape"] = [7, 1]


@case("expected F32", header_only=False)
def input_scale_of_integers(parts: Parts) -> None:
    parts.header["second.input_scale"]["dtype"] = "I32"


@case("expected F32", header_only=False)
def scale_of_integers(parts: Parts) -> None:
    parts.header["first.weight_scale"]["dtype"] = "I32"


@case(r"expected I8 \(7, 6\)", header_only=False)
def weight_flat(parts: Parts) -> None:
    parts.header["first.weight_q"]["shape"] = [42]


@case(r"expected I8 \(7, 6\)", header_only=False)
def weight_transposed(parts: Parts) -> None:
    parts.header["first.weight_q"]["shape"] = [6, 7]


@case("'embed.weight' is .* in the file and .* in the model", header_only=False)
def plain_transposed(parts: Parts) -> None:
    parts.header["embed.weight"]["shape"].reverse()


@case("'norm.num_batches_tracked' is torch.float64 in the file", header_only=False)
def plain_of_other_dtype(parts: Parts) -> None:
    parts.header["norm.num_batches_tracked"]["dtype"] = "F64"


# --- Values.

for _name, _value in [
    ("nan", float("nan")),
    ("infinity", float("inf")),
    ("minus_infinity", float("-inf")),
    ("zero", 0.0),
    ("minus_zero", -0.0),
    ("negative", -1.0),
]:
    for _tensor in ("first.weight_scale", "second.weight_scale", "second.input_scale"):
        case.change(
            f"scale_{_name}_{_tensor}",
            f"the scales '{_tensor}' are not all finite and positive",
            lambda parts, n=_tensor, v=_value: struct.pack_into("<f", parts.values(n), 8, v),
            header_only=False,
        )


@case("the weights 'second.weight_q' hold -128", header_only=False)
def weight_of_minus_128(parts: Parts) -> None:
    parts.values("second.weight_q")[-1] = 0x80


@case("'keep' of BOOL holds a byte that is neither 0 nor 1", header_only=False)
def bool_of_two(parts: Parts) -> None:
    parts.values("keep")[3] = 2

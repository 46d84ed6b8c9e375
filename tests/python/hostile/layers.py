"""Attacks on replaced layers: kinds, configurations, and the dtypes, shapes and values of their tensors."""

from __future__ import annotations

import struct
from typing import Any

from hostile.parts import Cases, Parts

LAYERS = case = Cases()

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

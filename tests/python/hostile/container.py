"""Attacks on the container: lengths, JSON, shapes, dtypes, offsets."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from typing import Any

from hostile.parts import Cases, Parts, assemble

CONTAINER = case = Cases()

WEIGHT = "first.weight_q"  # I8 [7, 6]
SCALE = "first.weight_scale"  # F32 [7]

# --- No tersor file at all.

for _name, _bytes, _message in [
    ("empty", b"", "is empty"),
    ("one_byte", b"{", "do not hold its header"),
    ("length_only", struct.pack("<Q", 0), "does not begin with"),
    ("zeros", bytes(4096), "does not begin with"),
    ("text", b"once upon a time there was a model", "not a tersor file"),
    ("pickle", pickle.dumps({"weight": [1.0] * 99}, protocol=4), "looks like a pickle"),
    ("gguf", b"GGUF" + bytes(99), "looks like a GGUF file"),
]:
    case.change(_name, _message, lambda parts, data=_bytes: data)


@case("looks like a zip archive")
def zip_archive(parts: Parts) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("model/data.pkl", b"x" * 99)
    return out.getvalue()


@case("plain safetensors file without a tersor manifest")
def plain_safetensors(parts: Parts) -> bytes:
    return assemble(json.dumps(parts.header), bytes(parts.data))


# --- Header length.

for _name, _length, _message in [
    ("length_beyond_file", 1 << 20, "do not hold its header"),
    ("length_of_64_bits", (1 << 64) - 1, "do not hold its header"),
    ("length_negative_as_signed", 1 << 63, "do not hold its header"),
    ("length_too_short", 8, "is not valid JSON"),
    ("length_not_aligned", 9, "not a multiple of 8"),
]:
    case.change(_name, _message, lambda parts, n=_length: struct.pack("<Q", n) + parts.pack()[8:])


@case("the limit is 33554432")
def header_over_the_limit(parts: Parts) -> bytes:
    return struct.pack("<Q", 40 << 20) + b"{" + b" " * (40 << 20)


# --- JSON.

for _name, _text, _message in [
    ("json_cut", b'{"a":', "is not valid JSON"),
    ("json_trailing", b"{}{}", "is not valid JSON"),
    ("json_number_key", b"{1:2}", "is not valid JSON"),
    ("json_single_quotes", b"{'a':1}", "is not valid JSON"),
    ("json_nan", b'{"a":NaN}', "NaN is not a JSON number"),
    ("json_infinity", b'{"a":-Infinity}', "Infinity is not a JSON number"),
    ("json_overflow", b'{"a":1e999}', "out of range"),
    ("json_long_number", b'{"a":' + b"9" * 200_000 + b"}", "a number of 200000 characters"),
    ("json_deep_lists", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper than 4"),
    ("json_deep_objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested deeper than 4"),
    ("json_unclosed_deep", b'{"a":' + b"[" * 100_000, "nested deeper than 4"),
    ("json_many_items", b'{"a":[' + b"[]," * 1_000_000 + b"[]]}", "more than 1000000 items"),
    ("json_many_unclosed", b'{"a":[' + b"," * 1_000_001, "more than 1000000 items"),
    ("json_large_of_quotes", b"{" + b'"' * (16 << 20), "is not valid JSON"),
    ("json_large_of_escapes", b'{"' + b'\\"' * (8 << 20), "is not valid JSON"),
    ("json_large_string", b'{"a":"' + "\U0001f600".encode() * (2 << 20) + b'"}', "plain safetensors file"),
    ("json_depth_behind_escapes", b'{"\\\\":"\\"]]]]","a":[[[[[1]]]]]}', "nested deeper than 4"),
    ("json_unclosed_string", b'{"a', "is not valid JSON"),
    ("json_only_backslashes", b"{" + b"\\" * 100_000, "is not valid JSON"),
    ("json_only_quotes", b"{" + b'"' * 100_000, "is not valid JSON"),
    ("json_utf8", b'{"a\xff":1}', "is not valid UTF-8"),
    ("json_utf8_overlong", b'{"\xc0\xaf":1}', "is not valid UTF-8"),
    ("json_utf16", '{"a":1}'.encode("utf-16-le"), "is not valid JSON"),
    ("json_byte_order_mark", b"\xef\xbb\xbf{}", "does not begin with"),
    ("json_leading_space", b" {}", "does not begin with"),
    ("json_list", b"[]", "does not begin with"),
    ("json_duplicate_metadata", b'{"__metadata__":{},"__metadata__":{}}', "occurs twice"),
    ("metadata_list", b'{"__metadata__":[]}', "not an object of strings"),
    ("metadata_number", b'{"__metadata__":{"format":1}}', "not an object of strings"),
    ("metadata_null", b'{"__metadata__":null}', "not an object of strings"),
]:
    case.change(_name, _message, lambda parts, text=_text: assemble(text, bytes(parts.data)))


@case("occurs twice")
def duplicate_tensor(parts: Parts) -> bytes:
    text = parts.header_text()
    return assemble(text[:-1] + f', "{WEIGHT}": {json.dumps(parts.header[WEIGHT])}' + "}", bytes(parts.data))


@case("occurs twice")
def duplicate_tensor_by_escape(parts: Parts) -> bytes:
    escaped = WEIGHT.replace("f", "\\u0066", 1)
    text = parts.header_text()
    return assemble(text[:-1] + f', "{escaped}": {json.dumps(parts.header[WEIGHT])}' + "}", bytes(parts.data))


@case("occurs twice")
def duplicate_field(parts: Parts) -> bytes:
    text = parts.header_text().replace('"dtype": "I8"', '"dtype": "I8", "dtype": "I8"', 1)
    return assemble(text, bytes(parts.data))


# --- Fields of a tensor.


def _field(name: str, message: str, key: str, value: Any, tensor: str = WEIGHT) -> None:
    def change(parts: Parts) -> None:
        parts.header[tensor][key] = value

    case.change(name, message, change)


for _name, _value in [
    ("negative", [-7, -6]),
    ("float", [7.0, 6]),
    ("bool", [True, 42]),
    ("string", ["7", 6]),
    ("null", None),
    ("object", {"0": 7, "1": 6}),
    ("nested", [[7], 6]),
    ("many_dims", [1] * 40 + [42]),
    ("huge_number", [1 << 62, 1]),
    ("beyond_64_bits", [1 << 70]),
]:
    _field(f"shape_{_name}", "has the invalid shape", "shape", _value)

for _name, _shape, _message in [
    ("product_overflow", [1 << 32, 1 << 32], "too large"),
    ("product_wraps_to_size", [(1 << 61) + 1, 42 * 8], "too large"),
    ("overflow_hidden_by_zero", [1 << 61, 1 << 61, 0], "too large"),
    ("huge", [1 << 40], "needs 1099511627776"),
    ("larger_than_data", [7, 7], "takes 42 bytes, but I8"),
    ("smaller_than_data", [7, 5], "takes 42 bytes, but I8"),
    ("zero", [7, 0], "takes 42 bytes, but I8"),
]:
    _field(f"shape_{_name}", _message, "shape", _shape)

for _name, _value in [
    ("negative", [-42, 0]),
    ("float", [0.0, 42.0]),
    ("one", [0]),
    ("three", [0, 42, 84]),
    ("string", ["0", "42"]),
    ("null", None),
    ("bool", [False, True]),
    ("beyond_64_bits", [1 << 64, (1 << 64) + 42]),
]:
    _field(f"offsets_{_name}", "has the invalid offsets", "data_offsets", _value)

_field("offsets_reversed", "takes -42 bytes", "data_offsets", [42, 0])
_field("offsets_beyond_file", "hole before it", "data_offsets", [1 << 40, (1 << 40) + 42])
_field("dtype_unknown", "unknown dtype 'F31'", "dtype", "F31")
_field("dtype_object", "unknown dtype 'object'", "dtype", "object")
_field("dtype_number", "unknown dtype 8", "dtype", 8)
_field("dtype_list", "unknown dtype", "dtype", ["I8"])
_field("dtype_wider", "needs 168", "dtype", "F32")
_field("field_extra", "needs exactly the fields", "strides", [6, 1])


@case("needs exactly the fields")
def field_missing(parts: Parts) -> None:
    del parts.header[WEIGHT]["dtype"]


@case("needs exactly the fields")
def tensor_is_a_list(parts: Parts) -> None:
    parts.header[WEIGHT] = ["I8", [7, 6], [0, 42]]


for _name, _key in [
    ("empty", ""),
    ("empty_part", "first..weight"),
    ("newline", "first.\nweight"),
    ("terminal_escape", "first.\x1b[2J"),
    ("surrogate", "first.\ud800"),
    ("nul", "first.\x00"),
    ("long", "x" * 100_000),
]:
    case.change(
        f"name_{_name}",
        "has no valid name",
        lambda parts, key=_key: parts.header.__setitem__(key, parts.header.pop(WEIGHT)),
    )


# --- Offsets of all tensors together.


@case("overlaps")
def overlap(parts: Parts) -> None:
    parts.header["second.weight_scale"]["data_offsets"] = list(parts.header[SCALE]["data_offsets"])
    parts.header["second.weight_scale"]["shape"] = [7]


@case("overlaps")
def partial_overlap(parts: Parts) -> None:
    begin, end = parts.header[WEIGHT]["data_offsets"]
    parts.header[WEIGHT]["data_offsets"] = [begin - 1, end - 1]


@case("leaves a hole")
def hole_inside(parts: Parts) -> None:
    begin, _ = parts.header[WEIGHT]["data_offsets"]
    for entry in parts.header.values():
        entry["data_offsets"] = [at + 8 * (entry["data_offsets"][0] >= begin) for at in entry["data_offsets"]]
    parts.data[begin:begin] = bytes(8)


@case("leaves a hole")
def hole_at_the_start(parts: Parts) -> None:
    for entry in parts.header.values():
        entry["data_offsets"] = [at + 8 for at in entry["data_offsets"]]
    parts.data[:0] = bytes(8)


@case("truncated, or with a tail")
def tail(parts: Parts) -> None:
    parts.data += b"x"


@case("truncated, or with a tail")
def hidden_archive(parts: Parts) -> None:
    parts.data += b"PK\x05\x06" + bytes(18)


@case("is not aligned")
def misaligned(parts: Parts) -> None:
    begin, end = parts.header[SCALE]["data_offsets"]
    parts.header[SCALE]["data_offsets"] = [begin + 1, end + 1]


@case("truncated, or with a tail")
def no_tensors(parts: Parts) -> None:
    parts.header.clear()

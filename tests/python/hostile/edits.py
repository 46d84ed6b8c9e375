"""Attacks on the edits: kinds, configurations, names, and sizes that would take memory."""

from __future__ import annotations

from typing import Any

from hostile.parts import Cases

EDITS = case = Cases()

HUGE = (1 << 31) - 1
CONV = {
    "in_channels": HUGE,
    "out_channels": HUGE,
    "kernel_size": [99, 99],
    "stride": [1, 1],
    "padding": [0, 0],
    "dilation": [1, 1],
    "groups": 1,
    "bias": True,
    "padding_mode": "zeros",
}
LINEAR = {"in_features": 6, "out_features": 7, "bias": True}


def _edits(name: str, message: str, *edits: Any, header_only: bool = False) -> None:
    case.change(
        f"edits_{name}",
        message,
        lambda parts: parts.manifest.__setitem__("edits", list(edits)),
        header_only=header_only,
    )


def _edit(name_: str, message: str, kind: str, /, **config: Any) -> None:
    _edits(f"{kind}_{name_}", message, {"kind": kind, "config": config})


def _replace(name: str, message: str, module: Any, place: Any = "first") -> None:
    _edit(name, message, "replace_module", name=place, module=module)


def _narrow(name: str, message: str, **change: Any) -> None:
    config = {"keeps": ["1f"], "cuts": {"second.weight": {"0": 0}}, "modules": {}, "config": {}, **change}
    _edit(name, message, "narrow", **config)


_edits("of_text", "invalid edit 'x'", "x", header_only=True)
_edits("more_fields", "an edit of the manifest has the keys", {"kind": "a", "config": {}, "x": 1}, header_only=True)
_edits("kind_number", "invalid kind or configuration: 1", {"kind": 1, "config": {}}, header_only=True)
_edits("kind_path", "invalid kind or configuration", {"kind": "os.system", "config": {}}, header_only=True)
_edits("config_list", "invalid kind or configuration", {"kind": "narrow", "config": []}, header_only=True)
_edits("kind_unknown", "unknown edit 'exec'; known: add_bias, drop_blocks, ", {"kind": "exec", "config": {}})
_edits(
    "too_many", "has 4097 edits; the limit is 4096", *[{"kind": "narrow", "config": {}}] * 4097, header_only=True
)  # fmt: skip
case.change(
    "edits_in_version_1",
    "the manifest has the keys",
    lambda parts: parts.metadata.__setitem__("tersor.format_version", "1"),
)

_replace("type_unknown", "unknown module type 'Lambda'; known: Sequential, ", {"type": "Lambda", "config": {}})
_replace("type_number", "a module needs a type", {"type": 7, "config": {}})
_replace("type_absent", "a module needs a type", {"config": {}})
_replace("null", "a module needs a type", None)
_replace("keys", "Linear needs exactly the keys", {"type": "Linear", "config": LINEAR, "x": 1})
_replace("config_keys", "Linear needs exactly the keys", {"type": "Linear", "config": {**LINEAR, "device": "cuda"}})
_replace("features_text", "in_features of Linear", {"type": "Linear", "config": {**LINEAR, "in_features": "6"}})
_replace("features_bool", "in_features of Linear", {"type": "Linear", "config": {**LINEAR, "in_features": True}})
_replace("features_zero", "in_features of Linear", {"type": "Linear", "config": {**LINEAR, "in_features": 0}})
_replace("features_2_31", "in_features of Linear", {"type": "Linear", "config": {**LINEAR, "in_features": 1 << 31}})
_replace("bias_number", "bias of Linear", {"type": "Linear", "config": {**LINEAR, "bias": 1}})
_replace("overflow", "edit 0 .replace_module.: RuntimeError", {"type": "Conv2d", "config": CONV})
_replace(
    "huge", "'norm.weight' is .* in the file", place="norm", module={
        "type": "BatchNorm1d",
        "config": {"num_features": HUGE, "eps": 1e-5, "momentum": None, "affine": True, "track_running_stats": True},
    },
)  # fmt: skip
_replace("groups", "ValueError: in_channels must be", {"type": "Conv2d", "config": {**CONV, "groups": 5}})
_replace("kernel_text", "kernel_size of Conv2d", {"type": "Conv2d", "config": {**CONV, "kernel_size": "eval"}})
_replace("kernel_dims", "kernel_size of Conv2d", {"type": "Conv2d", "config": {**CONV, "kernel_size": [3] * 3}})
_replace("no_children", "needs 1 to 32 children", {"type": "Sequential", "children": []})
_replace("children_object", "needs 1 to 32 children", {"type": "Sequential", "children": {}})
_replace(
    "many_children", "needs 1 to 32 children", {"type": "Sequential", "children": [{"type": "ReLU", "config": {}}] * 33}
)
_replace("name_unknown", "the model has no module 'third'", {"type": "ReLU", "config": {}}, place="third")
_replace(
    "name_method", "the model has no module 'first.forward'", {"type": "ReLU", "config": {}}, place="first.forward"
)
_replace("name_number", "the model has no module 1", {"type": "ReLU", "config": {}}, place=1)
_replace("root", "the model itself can't be replaced", {"type": "ReLU", "config": {}}, place="")
_replace("identity", "'first' is a Identity in the model", {"type": "Identity", "config": {}})

_edit("private", "no integer attribute '_x'", "set_attributes", modules={"first": {"_x": 1}}, config={})
_edit("method", "no integer attribute 'forward'", "set_attributes", modules={"first": {"forward": 1}}, config={})
_edit("bool", "no integer attribute 'training'", "set_attributes", modules={"first": {"training": 1}}, config={})
_edit("class", "no integer attribute '__class__'", "set_attributes", modules={"first": {"__class__": 1}}, config={})
_edit("grows", r"must be an integer in \[0, 6\]", "set_attributes", modules={"first": {"in_features": HUGE}}, config={})
_edit("text", "must be an integer", "set_attributes", modules={"first": {"in_features": "6"}}, config={})
_edit("list", "modules must be an object", "set_attributes", modules=[], config={})
_edit("no_config", "the model's config has no integer", "set_attributes", modules={}, config={"vocab_size": 1})

_narrow("keys", "needs exactly the keys", more=1)
_narrow("keeps_object", "keeps must be a list", keeps={})
_narrow("mask_short", "invalid mask ''", keeps=[""])
_narrow("mask_long", "invalid mask", keeps=["ff" * 1_000_000])
_narrow("mask_number", "invalid mask 31", keeps=[31])
_narrow("mask_upper", "invalid mask '1F'", keeps=["1F"])
_narrow("mask_empty", "keeps nothing", keeps=["00"])
_narrow("mask_beyond", "keeps nothing, or slices beyond the last of 6", keeps=["7f"])
_narrow("index_beyond", "a mask of .* must be an integer", cuts={"second.weight": {"0": 1}})
_narrow("index_negative", "a mask of .* must be an integer", cuts={"second.weight": {"0": -1}})
_narrow("dim_beyond", "has no dimension '2'", cuts={"second.weight": {"2": 0}})
_narrow("dim_negative", "has no dimension '-1'", cuts={"second.weight": {"-1": 0}})
_narrow("dims_list", "must be an object", cuts={"second.weight": [0]})
_narrow("tensor_unknown", "no tensor 'second.bias'", cuts={"second.bias": {"0": 0}})
_narrow("tensor_module", "no tensor 'second'", cuts={"second": {"0": 0}})
_narrow("tied_twice", "cut twice", keeps=["0f", "ff07"], cuts={"head.weight": {"0": 1}, "embed.weight": {"0": 1}})
_narrow("misfit", "'second' is .* in the file and|has out_features 6 in the file and 5 in the model")

_edit("twice", "is no linear or convolution layer without a bias", "add_bias", name="first")
_edit("norm", "is no linear or convolution layer without a bias", "add_bias", name="norm")
_edit("no_stack", "not an nn.Sequential", "drop_identities", stack="first", drop=[0])
_edit("no_stack", "not an nn.ModuleList", "drop_blocks", stack="first", drop=[0])
_edit("root", "not an nn.ModuleList", "drop_blocks", stack="", drop=[0])
_edit("keys", "needs exactly the keys", "drop_blocks", stack="first")

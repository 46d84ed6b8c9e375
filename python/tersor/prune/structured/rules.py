"""How numbers pass through operations that compute: entry by entry, sums of products, normalisations, attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tersor.prune.structured.shape_rules import SHAPE_RULES
from tersor.prune.structured.trace import FREE, Axes, Axis, Tracer, observe_tensors

Args = Sequence[Any]
Kwargs = Mapping[str, Any]


def pointwise(tracer: Tracer, args: Args, kwargs: Kwargs, out: Any) -> None:
    """Axes of equal size meet; one entry, or a number, goes with any."""
    for result in observe_tensors(out):
        tensors = [tensor for tensor in observe_tensors([*args, *kwargs.values()]) if tensor.dim()]
        found: Axes = []
        for dim in range(-result.dim(), 0):
            meeting: Axes = []
            for tensor in tensors:
                if tensor.dim() >= -dim and tensor.shape[dim] > 1:
                    meeting.append(tracer.axes(tensor)[dim])
            found.append(tracer.meet(*meeting, what="an operation"))
        tracer.put(result, found)


def unknown(tracer: Tracer, args: Args, kwargs: Kwargs, out: Any) -> None:
    """Results that have nothing to do with channels: ranges, constants, comparisons of whole tensors."""


def constant(tracer: Tracer, args: Args, kwargs: Kwargs, out: Any) -> None:
    """One value everywhere: its axes follow whatever they meet, if the code that makes it follows the sizes."""
    for result in observe_tensors(out):
        tracer.put(result, [tracer.ids.fresh(size) for size in result.shape])


def reduce(tracer: Tracer, args: Args, kwargs: Kwargs, out: Any) -> None:
    """Sums, means, maxima, norms over some axes: what is summed over may shrink."""
    x: Tensor = args[0]
    lists = [list(arg) for arg in [*args[1:], kwargs.get("dim")] if isinstance(arg, list | tuple)]
    single = [args[1]] if len(args) > 1 and type(args[1]) is int else list(range(x.dim()))
    given = lists[0] if lists else single
    gone = {dim % x.dim() for dim in given} if x.dim() else set()
    for result in observe_tensors(out):
        kept = [axis for dim, axis in enumerate(tracer.axes(x)) if dim not in gone]
        if result.dim() == x.dim():
            kept = [None if dim in gone else axis for dim, axis in enumerate(tracer.axes(x))]
        if result.dim() == len(kept):
            tracer.put(result, kept)


def spatial(tracer: Tracer, args: Args, kwargs: Kwargs, out: Any) -> None:
    """Pooling and resizing: [batch, channels, places...] keeps its channels."""
    axes = tracer.axes(args[0])
    for result in observe_tensors(out):
        keep = 2 if result.dim() > 3 else max(result.dim() - 2, 1)
        tracer.put(result, [axis if dim < keep else None for dim, axis in enumerate(axes)])


def softmax(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    axes = tracer.axes(args[0])
    tracer.pin(axes[args[1]], f"a softmax in {tracer.where()} is over it")
    tracer.put(out, axes)


def matrix_product(tracer: Tracer, one: Tensor, other: Tensor, out: Tensor) -> None:
    """[..., m, k] by [..., k, n]."""
    left, right = tracer.axes(one), tracer.axes(other)
    k = _contract(tracer, left[-1], right[-2], one.shape[-1])
    batch = [tracer.meet(a, b, what="a batch") for a, b in zip(left[:-2], right[:-2], strict=True)]
    tracer.put(out, [*batch, left[-2], right[-1]])
    if tracer.is_weight(other):
        tracer.note_weight(right[-1], right[-2])
    elif tracer.is_weight(one):
        tracer.note_weight(left[-2], left[-1])
    work = zip(out.shape, tracer.axes(out), strict=True)
    tracer.note_product("matmul", (one, other, out), [*work, (one.shape[-1], k)])


def _contract(tracer: Tracer, one: Axis, other: Axis, size: int) -> Axis:
    return tracer.meet(one, other, what="a product") if size > 1 else None


def mm(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    matrix_product(tracer, args[0], args[1], out)


def addmm(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    matrix_product(tracer, args[1], args[2], out)
    bias = tracer.axes(args[0])
    axes = tracer.axes(out)
    for dim in range(-len(bias), 0):
        if args[0].shape[dim] > 1:
            tracer.meet(axes[dim], bias[dim], what="a bias")


def convolution(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Ordinary, grouped, depthwise and transposed."""
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    channels, own = tracer.axes(x)[1], tracer.axes(weight)
    into, from_ = (own[1], own[0]) if transposed else (own[0], own[1])
    if groups == 1:
        summed = _contract(tracer, channels, from_, x.shape[1])
    elif transposed:
        tracer.pin_all([x, weight, bias], f"{tracer.where()} is transposed and grouped")
        summed = from_
    else:
        summed = _grouped(tracer, x, weight, groups)
    if bias is not None and out.shape[1] > 1:
        tracer.meet(into, tracer.axes(bias)[0], what="a bias")
    tracer.note_weight(into, from_)
    tracer.put(out, [tracer.axes(x)[0], into, *[None] * (out.dim() - 2)])
    kernel = weight[0, 0].numel()
    inner = (weight.shape[0 if transposed else 1], summed)
    places = x[0, 0].numel() if transposed else out[0, 0].numel()
    work = [
        (len(x), None),
        (out.shape[1] // (groups if transposed else 1), into),
        inner,
        (places, None),
        (kernel, None),
    ]
    tracer.note_product("convolution", (x, out), work)


def _grouped(tracer: Tracer, x: Tensor, weight: Tensor, groups: int) -> Axis:
    """A channel leaves from all groups at once; where each channel is its own group, a group leaves."""
    channels, (rows, columns, *_) = tracer.axes(x)[1], tracer.axes(weight)
    if channels is None or channels is FREE:
        tracer.pin(rows, f"{tracer.where()} is grouped and its input has fixed channels")
        tracer.pin(columns, f"{tracer.where()} is grouped and its input has fixed channels")
        return columns
    by_group = channels.reshape(groups, -1)
    outputs = np.zeros((groups, 0), dtype=np.int64) if rows is None else rows.reshape(groups, -1)
    if by_group.shape[1] == 1:
        for place in range(outputs.shape[1]):
            tracer.ids.unite(channels, outputs[:, place])
        if not tracer.note_attribute(("groups",), groups, channels, levels=1):
            tracer.pin(channels, f"{tracer.where()} convolves with groups that no module states")
        return None
    for group in range(1, groups):
        tracer.ids.unite(by_group[0], by_group[group])
        tracer.ids.unite(outputs[0], outputs[group])
    return tracer.meet(by_group[0], columns, what="a convolution")


def embedding(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    rows, columns = tracer.axes(args[0])
    tracer.pin(rows, "a vocabulary can't shrink")
    tracer.put(out, [*tracer.axes(args[1]), columns])
    tracer.note_weight(columns, None)


def glu(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """One half gates the other: entry i of both leaves together."""
    dim = (args[1] if len(args) > 1 else -1) % out.dim()
    axes = tracer.axes(args[0])
    whole = axes[dim]
    if whole is not None and whole is not FREE:
        axes[dim] = tracer.meet(*np.split(whole, 2), what="glu")
    tracer.put(out, axes)


def batch_norm(tracer: Tracer, args: Args, kwargs: Kwargs, out: Any) -> None:
    axes = tracer.axes(args[0])
    for tensor in args[1:5]:
        if isinstance(tensor, Tensor) and tensor.numel() > 1:
            tracer.meet(axes[1], tracer.axes(tensor)[0], what="batch norm")
    tracer.put(out[0] if isinstance(out, tuple) else out, axes)


def layer_norm(tracer: Tracer, args: Args, kwargs: Kwargs, out: Any) -> None:
    """Layer norm and RMS norm: the statistics are those of the channels that stay."""
    axes, shape = tracer.axes(args[0]), args[1]
    weight = args[2] if len(args) > 2 else None
    for back in range(1, len(shape) + 1):
        if len(shape) > 1 or weight is None:
            tracer.pin(axes[-back], f"the shape of {tracer.where()} is fixed")
    for tensor in args[2:4] if len(shape) == 1 else ():
        if isinstance(tensor, Tensor) and tensor.numel() > 1:
            tracer.meet(axes[-1], tracer.axes(tensor)[0], what="layer norm")
    tracer.put(out[0] if isinstance(out, tuple) else out, axes)


def group_norm(tracer: Tracer, args: Args, kwargs: Kwargs, out: Any) -> None:
    x, weight, bias, groups = args[0], args[1], args[2], args[6]
    axes = tracer.axes(x)
    if axes[1] is not None and axes[1] is not FREE:
        for group in axes[1].reshape(groups, -1)[1:]:
            tracer.ids.unite(axes[1].reshape(groups, -1)[0], group)
    if weight is None:
        tracer.pin(axes[1], f"the channels of {tracer.where()} are fixed")
    for tensor in (weight, bias):
        if tensor is not None:
            tracer.meet(axes[1], tracer.axes(tensor)[0], what="group norm")
    tracer.put(out[0], axes)


def attention(tracer: Tracer, args: Args, kwargs: Kwargs, out: Any) -> None:
    """softmax(q k^T) v over [batch, heads, tokens, size]; several heads of q may share one of k and v."""
    q, k, v = args[:3]
    axes = [tracer.axes(tensor) for tensor in (q, k, v)]
    heads = axes[0][1]
    for tensor, other in ((k, axes[1][1]), (v, axes[2][1])):
        if _tracked(heads) and other is not None and other is not FREE and tensor.shape[1] < q.shape[1]:
            other = other.repeat(q.shape[1] // tensor.shape[1])
        heads = tracer.meet(heads, other, what="attention") if q.shape[1] > 1 else None
    mask = (
        args[3] if len(args) > 3 and isinstance(args[3], Tensor) else kwargs.get("attn_mask", kwargs.get("attn_bias"))
    )
    if isinstance(mask, Tensor) and mask.dim() > 2 and mask.shape[-3] > 1:
        heads = tracer.meet(heads, tracer.axes(mask)[-3], what="a mask")
    tracer.pin(tracer.meet(axes[0][3], axes[1][3], what="attention"), f"{tracer.where()} scales by the size of a head")
    result: Tensor = out[0] if isinstance(out, tuple) else out
    tracer.put(result, [axes[0][0], heads, axes[0][2], axes[2][3]])
    work = [*zip(q.shape, [axes[0][0], heads, None, None], strict=True), (2 * k.shape[2], None)]
    tracer.note_product("attention", (q, k, v, result), work)


def _tracked(axis: Axis) -> bool:
    return axis is not None and axis is not FREE


RULES: dict[str, Callable[..., None]] = {
    **SHAPE_RULES,
    **dict.fromkeys(("mm", "bmm"), mm),
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "linalg_vector_norm", "norm", "var", "std", "var_mean"), reduce),
    **dict.fromkeys(("any", "all"), reduce),
    **dict.fromkeys(("_softmax", "_log_softmax"), softmax),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm", "rms_norm"), layer_norm),
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"), batch_norm
    ),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_fused_attention_overrideable",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_flash_attention",
        ),
        attention,
    ),
    **dict.fromkeys(
        (
            "max_pool2d_with_indices",
            "max_pool3d_with_indices",
            "avg_pool2d",
            "avg_pool3d",
            "_adaptive_avg_pool2d",
            "_adaptive_avg_pool3d",
            "adaptive_max_pool2d",
            "upsample_nearest1d",
            "upsample_nearest2d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
        ),
        spatial,
    ),
    **dict.fromkeys(("zeros", "ones", "full", "new_zeros", "new_ones", "new_full"), constant),
    **dict.fromkeys(
        ("arange", "empty", "new_empty", "scalar_tensor", "_local_scalar_dense", "empty_strided", "empty_permuted"),
        unknown,
    ),
    **dict.fromkeys(("pointwise", "_prelu_kernel"), pointwise),
    "convolution": convolution,
    "embedding": embedding,
    "native_group_norm": group_norm,
    "glu": glu,
}

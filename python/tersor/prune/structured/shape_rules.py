"""How numbers pass through operations that only move entries: views, splits, concatenations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from tersor.prune.structured.indices import Ids
from tersor.prune.structured.trace import FREE, Axes, Axis, Tracer

HEADS = (
    "num_attention_heads",
    "num_heads",
    "n_heads",
    "n_head",
    "heads",
    "nhead",
    "num_key_value_heads",
    "num_kv_heads",
    "key_value_proj_heads",
)
"""What modules call their number of heads."""

HEAD_SIZES = ("head_dim", "attention_head_size", "dim_per_head", "key_value_proj_dim", "d_kv", "dim_head", "head_size")
"""What they call the size of one."""

TOTALS = ("all_head_size", "inner_dim", "split_size", "embed_dim", "dim", "head_size_total")
"""What modules call the width of all heads together."""

Args = Sequence[Any]
Kwargs = Mapping[str, Any]


def same(tracer: Tracer, args: Args, kwargs: Kwargs, out: Any) -> None:
    """clone, detach, casts: the same entries."""
    if isinstance(out, Tensor):
        tracer.put(out, tracer.axes(args[0]), is_weight=tracer.is_weight(args[0]))


def permute(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    axes = tracer.axes(args[0])
    order = [dim % len(axes) for dim in args[1]]
    tracer.put(out, [axes[dim] for dim in order], is_weight=tracer.is_weight(args[0]))


def transpose(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    axes = tracer.axes(args[0])
    one, other = (args[1], args[2]) if len(args) > 2 else (0, 1)
    if len(axes) > 1:
        axes[one], axes[other] = axes[other], axes[one]
    tracer.put(out, axes, is_weight=tracer.is_weight(args[0]))


def unsqueeze(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    axes = tracer.axes(args[0])
    axes.insert(args[1] % out.dim(), None)
    tracer.put(out, axes, is_weight=tracer.is_weight(args[0]))


def squeeze(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    x: Tensor = args[0]
    given = range(x.dim()) if len(args) < 2 else args[1] if isinstance(args[1], list | tuple) else [args[1]]
    gone = {dim % x.dim() for dim in given if x.dim() and x.shape[dim] == 1}
    tracer.put(out, [axis for dim, axis in enumerate(tracer.axes(x)) if dim not in gone])


def expand(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    x: Tensor = args[0]
    lead = out.dim() - x.dim()
    axes: Axes = [FREE] * lead
    axes += [
        axis if size == new else FREE for axis, size, new in zip(tracer.axes(x), x.shape, out.shape[lead:], strict=True)
    ]
    tracer.put(out, axes, is_weight=tracer.is_weight(x) and lead == 0)


def view(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Axes that merge or split. Where several entries of an axis that is split are one head, they become one class."""
    x: Tensor = args[0]
    old, axes = list(x.shape), tracer.axes(x)
    result: Axes = []
    for sources, sizes in _blocks(old, list(out.shape)):
        result += _regroup(tracer, [old[dim] for dim in sources], [axes[dim] for dim in sources], sizes)
    tracer.put(out, result, is_weight=tracer.is_weight(x))


def _blocks(old: list[int], new: list[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of old dimensions and the new sizes of equal product that they become."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        dims: list[int] = []
        sizes: list[int] = []
        while True:
            have, want = math.prod(old[dim] for dim in dims), math.prod(sizes)
            if (dims or sizes) and have == want and not (dims and not sizes) and not (sizes and not dims):
                break
            if i < len(old) and (have <= want or j == len(new)):
                dims.append(i)
                i += 1
            elif j < len(new):
                sizes.append(new[j])
                j += 1
            else:
                break
        blocks.append((dims, sizes))
    return blocks


def _regroup(tracer: Tracer, old: list[int], axes: Axes, new: list[int]) -> Axes:
    tracked = [dim for dim, axis in enumerate(axes) if axis is not None and axis is not FREE]
    if not tracked:
        large = [axis for axis, size in zip(axes, old, strict=True) if size > 1]
        return [FREE if large and all(axis is FREE for axis in large) else None] * len(new)
    first = tracked[0]
    for dim in tracked[1:]:
        tracer.pin(axes[dim], f"a reshape in {tracer.where()} merges two axes that could both shrink")
    shape = [1] * len(old)
    shape[first] = old[first]
    ids: Ids = np.broadcast_to(np.asarray(axes[first]).reshape(shape), old).reshape(-1)
    if sum(size > 1 for size in old) > 1:
        tracer.note_attribute(TOTALS, len(ids), ids, levels=1)
    return _distribute(tracer, ids, new)


def _distribute(tracer: Tracer, ids: Ids, new: list[int]) -> Axes:
    """Gives a merged axis to the one new axis along which it will be cut."""
    grid = tracer.ids.find(ids).reshape(new)
    varying = [dim for dim, size in enumerate(new) if size > 1 and bool((grid != grid.take([0], dim)).any())]
    result: Axes = [None] * len(new)
    if not varying:
        return result
    cut = varying[0] if len(varying) == 1 else _choose(tracer, ids, new, varying)
    raw = np.moveaxis(ids.reshape(new), cut, 0).reshape(new[cut], -1)
    for place in range(1, raw.shape[1]):
        tracer.ids.unite(raw[:, 0], raw[:, place])
    result[cut] = raw[:, 0].copy()
    if len(varying) > 1:
        tracer.coupling.heads.append(raw[:, 0].copy())
        tracer.note_attribute(TOTALS, len(ids), ids, levels=1)
    return result


def _choose(tracer: Tracer, ids: Ids, new: list[int], varying: list[int]) -> int:
    """The axis of heads, by what the module or its configuration says of their number or size; else the longest."""

    def entries(dim: int) -> Ids:
        found: Ids = np.moveaxis(ids.reshape(new), dim, 0).reshape(new[dim], -1)[:, 0].copy()
        return found

    for dim in varying:
        if tracer.note_attribute(HEADS, new[dim], entries(dim)):
            return dim
    sizes = tracer.values(HEAD_SIZES)
    of_size = [dim for dim in varying if new[dim] in sizes]
    others = [dim for dim in varying if dim != of_size[-1]] if of_size else varying
    heads = [dim for dim in others if new[dim] in tracer.values(HEADS)]
    if heads or len(others) == 1:
        return (heads or others)[0]
    return max(others, key=lambda dim: new[dim])


def cat(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """Numbers follow one another; the other axes meet."""
    tensors = [tensor for tensor in args[0] if tensor.dim() == out.dim() and (tensor.numel() or out.dim() > 1)]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    axes = [tracer.axes(tensor) for tensor in tensors]
    result: Axes = [tracer.meet(*(a[d] for a in axes), what="cat") if d != dim else None for d in range(out.dim())]
    parts = [a[dim] for a in axes]
    if any(part is not None and part is not FREE for part in parts):
        whole = [_or_fixed(tracer, part, tensor.shape[dim]) for part, tensor in zip(parts, tensors, strict=True)]
        result[dim] = np.concatenate(whole)
    tracer.put(out, result)


def _or_fixed(tracer: Tracer, part: Axis, size: int) -> Ids:
    if part is not None and part is not FREE:
        return part
    fixed = tracer.ids.fresh(size)
    tracer.ids.pin(fixed, f"cat in {tracer.where()} appends something of fixed size")
    return fixed


def stack(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.dim()
    axes = [tracer.axes(tensor) for tensor in args[0]]
    result: Axes = [tracer.meet(*(a[d] for a in axes), what="stack") for d in range(out.dim() - 1)]
    result.insert(dim, None)
    tracer.put(out, result)


def split(tracer: Tracer, args: Args, kwargs: Kwargs, out: Sequence[Tensor]) -> None:
    """Parts of one size stay of one size: their entries of one place leave together."""
    x: Tensor = args[0]
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % x.dim()
    axes = tracer.axes(x)
    whole, start = axes[dim], 0
    parts: list[Ids] = []
    for piece in out:
        length = piece.shape[dim]
        own = whole if whole is None or whole is FREE else whole[start : start + length]
        start += length
        if own is not None and own is not FREE:
            parts.append(own)
        tracer.put(piece, [own if d == dim else axis for d, axis in enumerate(axes)])
    if parts and len({len(part) for part in parts}) == 1:
        for part in parts[1:]:
            tracer.ids.unite(parts[0], part)
        tracer.note_attribute(TOTALS, len(parts[0]), parts[0], levels=1)


def unbind(tracer: Tracer, args: Args, kwargs: Kwargs, out: Sequence[Tensor]) -> None:
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    axes = tracer.axes(args[0])
    tracer.pin(axes.pop(dim % args[0].dim()), f"unbind in {tracer.where()} takes it apart")
    for part in out:
        tracer.put(part, axes)


def select(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    axes = tracer.axes(args[0])
    tracer.pin(axes.pop(args[1] % args[0].dim()), f"an index in {tracer.where()} picks one entry of it")
    tracer.put(out, axes)


def take_slice(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    x: Tensor = args[0]
    dim = (args[1] if len(args) > 1 else 0) % x.dim()
    start, end = (args[2] if len(args) > 2 else None), (args[3] if len(args) > 3 else None)
    step = args[4] if len(args) > 4 else 1
    axes = tracer.axes(x)
    whole = axes[dim]
    if whole is not None and whole is not FREE:
        axes[dim] = whole[slice(start, end, step)]
    tracer.put(out, axes)


def pad(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    axes = tracer.axes(args[0])
    for place in range(len(args[1]) // 2):
        if any(args[1][2 * place : 2 * place + 2]):
            dim = len(axes) - 1 - place
            tracer.pin(axes[dim], f"padding in {tracer.where()} adds to it")
            axes[dim] = None
    tracer.put(out, axes)


def moved(tracer: Tracer, args: Args, kwargs: Kwargs, out: Tensor) -> None:
    """flip and roll along axes that are not tracked."""
    axes = tracer.axes(args[0])
    dims = args[2] if len(args) > 2 else args[1]
    for dim in dims:
        tracer.pin(axes[dim], f"flip or roll in {tracer.where()} moves it")
    tracer.put(out, axes)


SHAPE_RULES = {
    **dict.fromkeys(("alias", "clone", "detach", "_to_copy", "contiguous", "lift_fresh", "lift_fresh_copy"), same),
    **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"), same),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), view),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk"), split),
    **dict.fromkeys(("flip", "roll"), moved),
    "t": transpose,
    "transpose": transpose,
    "permute": permute,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "expand": expand,
    "cat": cat,
    "stack": stack,
    "unbind": unbind,
    "select": select,
    "slice": take_slice,
    "constant_pad_nd": pad,
}

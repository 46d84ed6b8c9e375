"""`layer.weight` of a layer that holds no float weight: a tensor that computes its values when they are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tersor.errors import TersorError

Dequantize = Callable[[Tensor, int, int, torch.dtype], Tensor]
"""``dequantize(packed, out_features, in_features, dtype)``: the weight that packed bytes stand for."""

READ_ONLY = (
    "the weight of an accelerated layer is read-only: change the float layer and convert it again with from_float, "
    "or load new values with load_state_dict"
)

# What a probe may ask without computing the weight.
_METADATA: frozenset[Any] = frozenset(
    [
        *(
            getattr(Tensor, name).__get__
            for name in ("dtype", "shape", "device", "ndim", "layout", "requires_grad", "grad", "grad_fn", "is_leaf")
        ),
        *(getattr(Tensor, name).__get__ for name in ("is_meta", "is_cuda", "is_sparse", "is_quantized")),
        *(
            getattr(Tensor, name)
            for name in ("size", "dim", "numel", "nelement", "stride", "is_floating_point", "is_complex")
        ),
        *(getattr(Tensor, name) for name in ("element_size", "is_contiguous", "__len__", "__hash__")),
    ]
)
_VIEWS_OF_SELF: frozenset[Any] = frozenset([Tensor.data.__get__, Tensor.detach])  # type: ignore[attr-defined]
_FLOAT_LAYERS: frozenset[Any] = frozenset([F.linear, F.multi_head_attention_forward, F.bilinear])
_INPLACE_OPERATORS = frozenset(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"))


def _writes(name: str) -> bool:
    return (
        name in ("__set__", "__setitem__", "__delete__", "set_")
        or name in _INPLACE_OPERATORS
        or (name.endswith("_") and not name.endswith("__"))
    )


class DequantizedWeight(Tensor):
    """A read-only view of packed bytes as the float weight that they stand for.

    `dtype`, `shape`, `device` and the like are answered at once; everything else sees a plain tensor that is made
    for the occasion. Writing raises TersorError. Handing it to a float layer function computes in float, which
    warns: call the layer instead.
    """

    packed: Tensor
    extents: tuple[int, int]
    reader: Dequantize
    transposed: bool
    float_dtype: torch.dtype

    @staticmethod
    def __new__(
        cls,
        packed: Tensor,
        out_features: int,
        in_features: int,
        dtype: torch.dtype,
        dequantize: Dequantize,
        transposed: bool = False,
    ) -> DequantizedWeight:
        shape, stride = (out_features, in_features), (in_features, 1)
        weight: DequantizedWeight = Tensor._make_wrapper_subclass(
            cls,
            shape[::-1] if transposed else shape,
            strides=stride[::-1] if transposed else stride,
            dtype=dtype,
            device=packed.device,
        )
        weight.packed, weight.extents, weight.reader = packed, shape, dequantize
        weight.transposed, weight.float_dtype = transposed, dtype
        return weight

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Asked on every call by some models (T5): answered without the detour over __torch_function__."""
        return self.float_dtype

    def materialize(self) -> Tensor:
        """The values, as a plain tensor of this shape and dtype.

        Raises:
            TersorError: the layer has no weights yet.
        """
        with torch._C.DisableTorchFunctionSubclass():
            if self.packed.is_meta:
                return torch.empty(self.shape, dtype=self.float_dtype, device="meta")
        if self.packed.numel() == 0:
            raise TersorError("this layer has no weights yet: load a state dict first")
        weight = self.reader(self.packed, *self.extents, self.float_dtype)
        return weight.t() if self.transposed else weight

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        target = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(kwargs.get("out"), cls) or (isinstance(target, cls) and _writes(getattr(func, "__name__", ""))):
            raise TersorError(READ_ONLY)
        if func in _VIEWS_OF_SELF:
            return target
        if func in _FLOAT_LAYERS:
            warnings.warn(
                f"{getattr(func, '__name__', func)} got the weight of an accelerated layer and computes in float; "
                "call the layer itself, or keep it float",
                stacklevel=3,
            )
        return func(*_plain(args), **_plain(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return func(*_plain(args), **_plain(kwargs or {}))


def _plain(tree: Any) -> Any:
    return tree_map_only(DequantizedWeight, DequantizedWeight.materialize, tree)

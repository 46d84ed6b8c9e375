"""What a replacement layer has to say about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

Expected = dict[str, tuple[torch.dtype, tuple[int, ...]]]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class LayerContract(nn.Module):
    """What a subclass of PackedLayer provides: its kind, and how to make, pack, unpack and describe it."""

    kind: ClassVar[str] = ""
    optional: ClassVar[tuple[str, ...]] = ()  # canonical tensors that only some configurations have

    @classmethod
    def reason_against(cls, module: nn.Module) -> str | None:
        """Why `module` cannot become this layer, or None when it can."""
        raise NotImplementedError

    @classmethod
    def from_float(cls, module: nn.Module) -> Self:
        """The layer that replaces `module`; raises ValueError with reason_against(module)."""
        raise NotImplementedError

    def to_float(self) -> nn.Module:
        """The float layer with the values that this layer computes with."""
        raise NotImplementedError

    @classmethod
    def float_example(cls) -> tuple[nn.Module, Tensor]:
        """A small float layer that this kind replaces, and an input for it: for tests and documentation."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """What from_config needs, JSON-able."""
        raise NotImplementedError

    @property
    def kernel(self) -> str:
        """The id of the kernel that the packed weight is for; raises TersorError where there are no weights."""
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A layer without weights; raises ValueError when the config is not valid."""
        raise NotImplementedError

    @classmethod
    def expected_tensors(cls, config: Mapping[str, Any]) -> Expected:
        """Names, dtypes and shapes of the tensors that `fill` takes; raises ValueError like from_config."""
        raise NotImplementedError

    def _pack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Canonical weight tensors, or a float `weight`, to packed bytes."""
        raise NotImplementedError

    def _unpack(self) -> dict[str, Tensor]:
        """The canonical weight tensors, without parameters such as the bias."""
        raise NotImplementedError

    def _moved(self, packed: Tensor, device: torch.device) -> Tensor:
        """The packed bytes as another device wants them; raises ValueError where it has no kernel for the layer."""
        if device.type != packed.device.type:
            raise ValueError(f"{type(self).__name__} has no kernels for {device.type}")
        return packed.to(device)

    @classmethod
    def place_problem(cls, config: Mapping[str, Any], module: nn.Module) -> str | None:
        """Why a layer of this valid config can't take the place of `module`, or None when it can."""
        weight = module._parameters.get("weight")
        if not isinstance(module, LayerContract) and (weight is None or nn.parameter.is_lazy(weight)):
            return f"is a {type(module).__name__} in the model, without a weight to replace"
        for key, value in config.items():
            own = getattr(module, key, value)
            if isinstance(value, bool):
                own = module._parameters[key] is not None if key in module._parameters else value  # as for a bias
            if isinstance(value, int) and own != value:
                return f"has {key} {value} in the file and {own!r:.100} in the model"
        stored = [config.get(key) for key in ("out_features", "in_features")]
        if weight is not None and weight.dim() == 2 and set(weight.shape) != set(stored):
            return f"is {stored} in the file and {list(weight.shape)} in the model"
        return None

    def _stand_in(self, old: nn.Module, duplicate: Callable[[Any], Any]) -> None:
        """Take over what a subclass needs from the module whose place it takes, beside hooks and attributes.

        `duplicate` is applied to what is taken. Raises ValueError where `old` can't be stood in for.
        """

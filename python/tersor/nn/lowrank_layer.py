"""What the low-rank layers share: two factors instead of a weight, and the float layers that they replace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tersor.factorize.factored_linear import FactoredLinear
from tersor.factorize.svd import truncated_svd
from tersor.nn.linear_config import checked_config
from tersor.nn.packed_layer import DTYPE_NAMES
from tersor.nn.packed_linear import PackedLinear

MAX_IN_FEATURES = 65536


class LowRankLayer(PackedLinear):
    """A linear layer whose weight is weight_up [out_features, rank] times weight_down [rank, in_features]."""

    rank: int

    def _start_rank(self, rank: int) -> None:
        if type(rank) is not int or not 1 <= rank <= min(self.in_features, self.out_features):
            raise ValueError(
                f"rank: expected an integer in [1, {min(self.in_features, self.out_features)}], got {rank!r}"
            )
        self.rank = rank

    def config(self) -> dict[str, Any]:
        """What from_config needs, JSON-able."""
        return {**super().config(), "rank": self.rank}

    @staticmethod
    def _checked(config: Mapping[str, Any], quantised: bool) -> dict[str, Any]:
        """A copy of a valid config; raises ValueError otherwise."""
        if not isinstance(config, Mapping) or "rank" not in config:
            raise ValueError(f"config: expected a mapping with a rank, got {type(config).__name__}")
        rest = {key: value for key, value in config.items() if key != "rank"}
        settings, rank = checked_config(rest, quantised=quantised), config["rank"]
        n, k = settings["out_features"], settings["in_features"]
        if type(rank) is not int or not 1 <= rank <= min(n, k):
            raise ValueError(f"rank: expected an integer in [1, {min(n, k)}], got {rank!r}")
        if quantised and k > MAX_IN_FEATURES:
            raise ValueError(f"in_features: expected at most {MAX_IN_FEATURES}, got {k}")
        return {**settings, "rank": rank}

    @classmethod
    def reason_against(cls, module: nn.Module) -> str | None:
        """Why `module` cannot become this layer, or None when it can."""
        if not isinstance(module, FactoredLinear):
            return super().reason_against(module)
        for name, weight in module.named_parameters():
            if weight.dtype not in DTYPE_NAMES:
                return f"its {name} is {weight.dtype}; supported are float32, bfloat16, float16"
            if weight.device.type != "cpu":
                return f"its {name} is on {weight.device}; move it to the CPU first"
        return None

    @classmethod
    def place_problem(cls, config: Mapping[str, Any], module: nn.Module) -> str | None:
        """Why a layer of this valid config can't take the place of `module`, or None when it can."""
        if not isinstance(module, FactoredLinear):
            return super().place_problem(config, module)
        for key in ("in_features", "out_features"):
            if getattr(module, key) != config[key]:
                return f"has {key} {config[key]} in the file and {getattr(module, key)} in the model"
        if (module.bias is not None) != config["bias"]:
            return f"has bias {config['bias']} in the file and {module.bias is not None} in the model"
        return None

    @classmethod
    def _factor(cls, module: nn.Module, rank: int | None, settings: dict[str, Any], tensors: Any) -> Self:
        """The layer for a FactoredLinear, or for an nn.Linear and a rank."""
        reason = cls.reason_against(module)
        if reason is None and isinstance(module, FactoredLinear) and rank not in (None, module.rank):
            reason = f"it has the rank {module.rank}, not {rank}"
        if reason is None and not isinstance(module, FactoredLinear) and rank is None:
            reason = "an nn.Linear needs a rank; tersor.factorize chooses one"
        if reason is not None:
            raise ValueError(reason)
        with torch.inference_mode(False), torch.no_grad():
            if not isinstance(module, FactoredLinear):
                down, up = truncated_svd(module.weight, rank)  # type: ignore[arg-type]
                training, dtype = module.training, module.weight.dtype
                module = FactoredLinear.from_factors(down.to(dtype), up.to(dtype), module.bias)  # type: ignore[arg-type]
                module.train(training)
            layer = cls(  # type: ignore[call-arg]
                module.in_features,
                module.out_features,
                module.bias is not None,
                "cpu",
                module.weight_down.dtype,
                rank=module.rank,
                **settings,
            )
            factors = {"weight_down": module.weight_down, "weight_up": module.weight_up}
            layer._take_packed(layer._pack({**factors, **tensors}))
            if module.bias is not None:
                layer.bias.copy_(module.bias)
        layer.training = module.training
        return layer

    def _float_factors(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def to_float(self) -> nn.Module:
        """A FactoredLinear with the values that this layer computes with. A fused activation is not part of it."""
        down, up = (factor.to(self.dtype) for factor in self._float_factors())
        module = FactoredLinear.from_factors(down, up, self.bias)
        return module.train(self.training)

    @classmethod
    def float_example(cls) -> tuple[nn.Module, Tensor]:
        """FactoredLinear(70, 33, rank=20) and x [2, 3, 70]."""
        return FactoredLinear(70, 33, 20), torch.randn(2, 3, 70)

    def _checked_factors(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        shapes = {"weight_down": (self.rank, self.in_features), "weight_up": (self.out_features, self.rank)}
        for name, shape in shapes.items():
            factor = tensors[name]
            if tuple(factor.shape) != shape or not factor.is_floating_point() or factor.device.type != "cpu":
                got = f"{factor.dtype} {list(factor.shape)} on {factor.device}"
                raise ValueError(f"{name}: expected floats {list(shape)} on cpu, got {got}")
            if not bool(torch.isfinite(factor).all()):
                raise ValueError(f"{name} holds NaN or infinity")
        return tensors["weight_down"].detach(), tensors["weight_up"].detach()

    def extra_repr(self) -> str:
        """Adds the rank."""
        return f"{super().extra_repr()}, rank={self.rank}"

"""What every replacement layer promises about its surface, state and errors, for every kind in the registry."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_case import (
    CASES,
    LayerCase,
    float_keys,
    make_case,
    same,
    stored_factors,
    stored_weight,
    values,
    whole_weight,
)
from torch import nn

from tersor.errors import TersorError
from tersor.nn import REGISTRY, register
from tersor.nn.lowrank_layer import LowRankLayer


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> LayerCase:
    return make_case(request.param)


def test_registry_refuses_a_second_class_for_a_kind(case: LayerCase) -> None:
    cls = case[0]
    with pytest.raises(ValueError, match=cls.kind):
        register(type("Impostor", (cls,), {}))
    assert REGISTRY[cls.kind] is cls


def test_is_close_to_the_float_layer(case: LayerCase) -> None:
    """x^ w^ - x w = (x^ - x) w^ + x (w^ - w), and |x^ - x| <= s_x / 2, |w^ - w| <= s_w / 2; then float rounding.

    With smoothing by c, x stands for x c and w for w / c. Without integers, both s are 0. What a code book does to w
    has no such bound: there it is the float layer with the weight that the codes stand for.
    """
    _, module, layer, x, settings = case
    if isinstance(layer, LowRankLayer):
        pytest.skip("test_low_rank_is_close_to_the_float_layer")
    coded = "codebook" in layer.kind
    integers = "int8" in layer.kind or coded
    weight, s_w = stored_weight(layer)
    weight, s_w = weight.double() * s_w.double()[:, None], s_w.double() * integers  # [n, k], [n]
    wide = x.double()
    expected = copy.deepcopy(layer.to_float() if coded else module).double()(wide)
    wide = wide * settings.get("input_scale", torch.ones(x.shape[-1])).double()
    s_x = (wide.amax(-1).clamp_min(0) - wide.amin(-1).clamp_max(0)).unsqueeze(-1) / 255 * integers
    s_w = s_w * (not coded)
    bound = s_x / 2 * weight.abs().sum(1) + s_w / 2 * wide.abs().sum(-1, keepdim=True)
    rounding = 2.0**-20 * (expected.abs() + wide.abs() @ weight.abs().t() + layer.bias.double().abs())
    assert torch.all((values(layer, x).double() - expected).abs() <= bound + rounding)


def test_low_rank_is_close_to_the_float_layer(case: LayerCase) -> None:
    """The bound above for h = x V, then again for h U, where h^ is off by that bound and by s_h / 2."""
    _, module, layer, x, settings = case
    if not isinstance(layer, LowRankLayer):
        pytest.skip("test_is_close_to_the_float_layer")
    integers, canonical = "int8" in layer.kind, layer.canonical_tensors()
    down, up = (factor.double() for factor in stored_factors(layer))
    s_down, s_up = (
        canonical[f"weight_{part}_scale"].double() if integers else torch.zeros(1) for part in ("down", "up")
    )
    wide = x.double()
    expected = copy.deepcopy(module).double()(wide)
    wide = wide * settings.get("input_scale", torch.ones(x.shape[-1])).double()

    def step(values: torch.Tensor) -> torch.Tensor:
        spread = values.amax(-1).clamp_min(0) - values.amin(-1).clamp_max(0)
        return spread.unsqueeze(-1) / 255 * integers

    h = wide @ down.t()
    h_off = step(wide) / 2 * down.abs().sum(1) + s_down / 2 * wide.abs().sum(-1, keepdim=True)
    s_h = step(h) + 2 * h_off.amax(-1, keepdim=True) / 255 * integers
    h_most = h.abs() + h_off + s_h / 2
    bound = (h_off + s_h / 2) @ up.abs().t() + s_up / 2 * h_most.sum(-1, keepdim=True)
    rounding = 2.0**-20 * (expected.abs() + h_most @ up.abs().t() + layer.bias.double().abs())
    assert torch.all((values(layer, x).double() - expected).abs() <= bound + rounding)


def test_to_float_and_back_keeps_the_integers(case: LayerCase) -> None:
    cls, module, layer, _, settings = case
    back = layer.to_float()
    assert type(back) is type(module)
    if "codebook" in cls.kind:
        pytest.skip("a code book is fitted anew to the weight that its codes stand for")
    again, own = cls.from_float(back, **settings).canonical_tensors(), layer.canonical_tensors()
    assert again.keys() == own.keys()
    for key, tensor in own.items():
        if key.endswith("weight_scale") or key.endswith(("down_scale", "up_scale")):
            torch.testing.assert_close(again[key], tensor, rtol=1e-6, atol=0)
        else:
            assert torch.equal(again[key], tensor)
    assert torch.equal(back.weight, layer.weight)
    assert back.weight.requires_grad
    assert not back.training


def test_the_weight_is_what_the_canonical_tensors_stand_for(case: LayerCase) -> None:
    _, module, layer, _, settings = case
    canonical = layer.canonical_tensors()
    assert ("input_scale" in canonical) == ("input_scale" in settings) == ("smoothed" in repr(layer))
    if "input_scale" in settings:
        assert torch.equal(canonical["input_scale"], settings["input_scale"])
    weight = whole_weight(layer)
    if module.weight.shape != weight.shape:
        weight = weight.t()
    assert torch.equal(layer.weight + 0, weight)


def test_keeps_the_surface_of_the_float_layer(case: LayerCase) -> None:
    _, module, layer, x, _ = case
    assert isinstance(layer, nn.Linear)
    for name in ("in_features", "out_features", "nf", "nx"):
        assert getattr(layer, name, None) == getattr(module, name, getattr(layer, name, None))
    assert layer.weight.shape == module.weight.shape
    assert layer.weight.dtype == module.weight.dtype == next(layer.parameters()).dtype
    assert isinstance(layer.bias, nn.Parameter)
    assert torch.equal(layer.bias, module.bias)
    assert [name for name, _ in layer.named_buffers()] == ["packed"]
    assert ("int8" in layer.extra_repr()) == ("int8" in layer.kind)
    assert ("sparse" in layer.kind) == ("density=" in layer.extra_repr())
    assert "bias=True" in repr(layer)
    assert layer.training is module.training
    (name,) = inspect.signature(module.forward).parameters
    assert torch.equal(layer(**{name: x}), layer(x))
    assert layer.train().training


def test_state_dict_is_strict_canonical_and_loads_weights_only(case: LayerCase, tmp_path: Path) -> None:
    cls, _, layer, x, _ = case
    state = layer.state_dict()
    assert set(state) == set(cls.expected_tensors(layer.config()))
    torch.save(state, tmp_path / "state.pt")
    other = cls.from_config(layer.config())
    assert set(other.state_dict()) == set(state)
    result = other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert same(other, layer, x)


def test_state_dict_of_a_model_reports_only_what_is_wrong(case: LayerCase) -> None:
    _, _, layer, _, _ = case
    model = nn.ModuleDict({"b": nn.LayerNorm(3, elementwise_affine=False), "a": layer})
    state = model.state_dict()
    last = [key for key in state if "weight" in key][-1]
    missing = {key: value for key, value in state.items() if key != last}
    with pytest.raises(RuntimeError, match=f"Missing key.*{last}"):
        model.load_state_dict(missing)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*b\.weight_q"):
        model.load_state_dict({**state, "b.weight_q": torch.ones(1)})
    assert model.load_state_dict(missing, strict=False).missing_keys == [last]


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("weight_q", lambda t: t.to(torch.int16), "expected torch.int8"),
        ("weight_q", lambda t: t[:-1], "expected torch.int8|weight_mask names"),
        ("weight_q", lambda t: torch.cat([torch.full_like(t[:1], -128), t[1:]]), "-128"),
        ("weight_q", lambda t: t[..., :-1], "expected torch.int8"),
        ("weight_mask", lambda t: t[:-1], "expected torch.uint8"),
        ("weight_mask", lambda t: t ^ 4, "weight_mask names"),
        ("weight_values", lambda t: t[:-1], "expected torch.float32|weight_mask names"),
        ("weight_values", lambda t: torch.cat([t[:1] * torch.nan, t[1:]]), "NaN"),
        ("weight_values", lambda t: t.double(), "expected torch.float32"),
        ("weight_down", lambda t: t[:-1], "expected torch.float32"),
        ("weight_up", lambda t: t * torch.nan, "NaN"),
        ("weight_down_q", lambda t: t[:, 1:], "expected torch.int8"),
        ("weight_up_q", lambda t: torch.cat([torch.full_like(t[:1], -128), t[1:]]), "-128"),
        ("weight_up_scale", lambda t: t.fill_(0), "scale"),
        ("weight_codes", lambda t: t[:-1], "expected torch.uint8"),
        ("weight_codes", lambda t: t.int(), "expected torch.uint8"),
        ("weight_table", lambda t: torch.full_like(t, -128), "-128"),
        ("weight_table", lambda t: t[:-1], "expected torch.int8"),
        ("weight_scale", lambda t: t.fill_(0), "scale"),
        ("weight_scale", lambda t: t.fill_(float("nan")), "scale"),
        ("weight_scale", lambda t: t.double(), "expected torch.float32"),
        ("bias", lambda t: t[:-1], "bias"),
    ],
)
def test_bad_tensors_are_refused(case: LayerCase, key: str, change: Any, message: str) -> None:
    cls, _, layer, x, _ = case
    before = values(layer, x)
    state = layer.state_dict()
    if key not in state:
        pytest.skip(f"{cls.kind} has no {key}")
    state[key] = change(state[key].clone())
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(state)
    assert torch.equal(values(layer, x), before)
    with pytest.raises(ValueError, match=message):
        cls.from_config(layer.config()).fill(state)


def test_a_float_state_dict_is_quantised_on_loading(case: LayerCase) -> None:
    cls, module, layer, x, settings = case
    other = cls.from_config(layer.config())
    if settings:
        with pytest.raises(RuntimeError, match="does not say how to smooth"):
            other.load_state_dict(module.state_dict())
        canonical = layer.canonical_tensors()
        scale = next(key for key in canonical if key.startswith("weight") and key.endswith("_scale"))
        other.fill({**canonical, scale: 2 * canonical[scale]})
    other.load_state_dict(module.state_dict())
    assert same(other, layer, x)
    if set(float_keys(layer)) & layer.state_dict().keys():
        return  # it keeps the very tensors of the float layer
    with pytest.raises(RuntimeError, match="keep one of the two"):
        other.load_state_dict({**module.state_dict(), **layer.state_dict()})


@pytest.mark.parametrize("strict", [True, False])
def test_optional_tensors_are_neither_dropped_nor_left_out(case: LayerCase, strict: bool) -> None:
    cls, module, layer, x, settings = case
    if not cls.optional:
        pytest.skip(f"{cls.kind} has no optional tensors")
    other = cls.from_float(module, **({} if settings else {key: torch.ones(x.shape[-1]) for key in cls.optional}))
    before, state = values(other, x), layer.state_dict()
    if settings:
        with pytest.raises(RuntimeError, match="input_scale, which a layer of this configuration has no place for"):
            other.load_state_dict(state, strict=strict)
    elif strict:
        with pytest.raises(RuntimeError, match=r"Missing key.*input_scale"):
            other.load_state_dict(state)
    else:
        assert other.load_state_dict(state, strict=False).missing_keys == ["input_scale"]
    assert torch.equal(values(other, x), before)


def test_config_survives_json_and_bad_configs_are_refused(case: LayerCase) -> None:
    cls, _, layer, x, _ = case
    config = json.loads(json.dumps(layer.config()))
    other = cls.from_config(config)
    assert other.config() == layer.config()
    with pytest.raises(TersorError, match="no weights yet"):
        other(x)
    with pytest.raises(TersorError, match="no weights yet"):
        other.canonical_tensors()
    other.fill(layer.canonical_tensors())
    assert same(other, layer, x)
    for bad in ({**config, "dtype": "int8"}, {**config, "more": 1}, {**config, "in_features": True}, {}, None):
        with pytest.raises(ValueError, match="expected"):
            cls.from_config(bad)
        with pytest.raises(ValueError, match="expected"):
            cls.expected_tensors(bad)


def test_wrong_input_names_layer_got_expected_and_remedy(case: LayerCase) -> None:
    _, _, layer, x, _ = case
    layer._tersor_name = "encoder.0.fc"
    for bad, got, remedy in [
        (x[..., :-1], str(x.shape[-1] - 1), "last dimension"),
        (x.double(), "float64", "x.float()"),
        (x.to_sparse(), "sparse", "convert it"),
        (x.numpy(), "ndarray", "tensor"),
        (x.sum(), "[]", "last dimension"),
    ]:
        for grad in (True, False):
            with torch.set_grad_enabled(grad), pytest.raises(TersorError) as caught:
                layer(bad)
            for part in ("encoder.0.fc", "expected", "got", got, remedy):
                assert part in str(caught.value)


def test_the_weight_is_read_only(case: LayerCase) -> None:
    _, _, layer, x, _ = case
    before = values(layer, x)
    for write in (
        lambda: setattr(layer, "weight", layer.weight.clone()),
        lambda: setattr(layer, "weight", nn.Parameter(layer.weight.clone())),
        lambda: layer.weight.mul_(2),
        lambda: layer.weight.data.zero_(),
        lambda: layer.weight.__setitem__(0, 0.0),
        lambda: nn.init.normal_(layer.weight),
        lambda: torch.neg(x[0, 0], out=layer.weight),
        lambda: layer.weight.requires_grad_(),
        layer.reset_parameters,
    ):
        with pytest.raises(TersorError, match="read-only"):
            write()
    assert torch.equal(values(layer, x), before)

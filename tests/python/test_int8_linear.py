"""Int8Linear: its numbers against NumPy, its settings, gradients, memory, and the refusals of from_float."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune

from tersor import kernels
from tersor.nn import Int8Linear
from tersor.ops import ACTIVATIONS

F32 = np.float32
CHUNK = 65536  # kMaxDepthS8: deeper products are summed in float, chunk by chunk
FLOAT_ACTIVATIONS = {
    "none": lambda z: z,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
}


def quantized(x: np.ndarray, layer: Int8Linear) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q [m, k], scale [m], zero_point [m] by the formula of docs/kernels.md."""
    if layer.x_scale > 0:
        scale = np.full(len(x), layer.x_scale, F32)
        zero = np.full(len(x), layer.x_zero_point, np.int64)
        inverse = F32(1) / scale
    else:
        low, high = np.minimum(x.min(axis=1), F32(0)), np.maximum(x.max(axis=1), F32(0))
        scale = np.maximum(high / F32(255) - low / F32(255), np.finfo(F32).tiny)
        inverse = F32(1) / scale
        zero = np.clip(np.rint(-low * inverse), 0, 255).astype(np.int64)
    t = np.clip(x * inverse[:, None], -zero[:, None].astype(F32), (255 - zero)[:, None].astype(F32))
    return np.rint(t).astype(np.int64) + zero[:, None], scale, zero


def reference(layer: Int8Linear, x: Tensor) -> Tensor:
    """The layer in NumPy; exact integers, then float32 steps in the order that the contract gives."""
    tensors = layer.canonical_tensors()
    w, w_scale = tensors["weight_q"].numpy().astype(np.int64), tensors["weight_scale"].numpy()
    wide = x.reshape(-1, x.shape[-1]).float().numpy()
    if layer.smoothed:
        wide = wide * tensors["input_scale"].numpy()
    q, x_scale, zero = quantized(wide, layer)
    y = np.zeros((len(wide), len(w)), F32)
    if layer.bias is not None:
        y += tensors["bias"].float().numpy()
    for begin in range(0, w.shape[1], CHUNK):
        part = w[:, begin : begin + CHUNK]
        integers = q[:, begin : begin + CHUNK] @ part.T - zero[:, None] * part.sum(axis=1)
        y = integers.astype(F32) * (x_scale[:, None] * w_scale) + y
    if layer.activation != "none":
        y = kernels.activate(layer.activation, y)
    return torch.from_numpy(y).to(x.dtype).reshape(*x.shape[:-1], -1)


def output(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


def some_input_scale(k: int) -> Tensor:
    return torch.rand(k) * 0.99 + 0.01


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (1, 384, 384), (5, 63, 65), (16, 64, 31), (67, 100, 129)])
def test_equals_the_formula_bit_for_bit(m: int, k: int, n: int, dtype: torch.dtype, bias: bool, smoothed: bool) -> None:
    torch.manual_seed(m * k + n)
    input_scale = some_input_scale(k) if smoothed else None
    layer = Int8Linear.from_float(nn.Linear(k, n, bias=bias).to(dtype), input_scale=input_scale)
    x = (torch.randn(m, k) * 3).to(dtype)
    x[0] = 0
    assert torch.equal(output(layer, x), reference(layer, x))


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("static", [(0.0, 0), (0.02, 128), (0.5, 0), (0.5, 255)])
def test_activations_and_static_scales(activation: str, static: tuple[float, int], smoothed: bool) -> None:
    torch.manual_seed(1)
    settings = {"x_scale": static[0], "x_zero_point": static[1], "input_scale": some_input_scale(40)}
    if not smoothed:
        del settings["input_scale"]
    layer = Int8Linear.from_float(nn.Linear(40, 24), activation=activation, **settings)
    x = torch.randn(9, 40) * 4
    assert torch.equal(output(layer, x), reference(layer, x))
    again = Int8Linear.from_config(layer.config())
    again.fill(layer.canonical_tensors())
    assert torch.equal(output(again, x), output(layer, x))
    plain = Int8Linear.from_float(layer.to_float(), input_scale=settings.get("input_scale"))
    expected = FLOAT_ACTIVATIONS[activation](output(plain, x))
    if static[0] == 0:
        torch.testing.assert_close(output(layer, x), expected, rtol=1e-4, atol=1e-5)


def test_extreme_integers_and_a_product_deeper_than_one_chunk() -> None:
    k = CHUNK + 100
    module = nn.Linear(k, 3)
    with torch.no_grad():
        module.weight.fill_(1.0)
        module.weight[1] = -1.0
        module.weight[2, ::2] = -1.0
    x = torch.cat([torch.full((1, k), 1e3), torch.full((1, k), -1e3), torch.randn(1, k)])
    for input_scale in (None, some_input_scale(k)):
        layer = Int8Linear.from_float(module, input_scale=input_scale)
        assert torch.equal(output(layer, x), reference(layer, x))


def test_rows_with_nan_or_infinity_stay_in_their_row() -> None:
    layer = Int8Linear.from_float(nn.Linear(16, 8))
    x = torch.randn(4, 16)
    clean = output(layer, x)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    y = output(layer, x)
    assert torch.isnan(y[1:3]).all()
    assert torch.equal(y[[0, 3]], clean[[0, 3]])


def test_a_weight_row_of_zeros_gives_the_bias() -> None:
    module = nn.Linear(16, 8)
    with torch.no_grad():
        module.weight[2] = 0
    layer = Int8Linear.from_float(module)
    assert torch.equal(output(layer, torch.randn(5, 16))[:, 2], module.bias[2].expand(5))


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_the_dequantised_layer(activation: str, smoothed: bool) -> None:
    """With z the layer's own pre-activation: dx = (dy * activation'(z)) W, dbias = sum (dy * activation'(z))."""
    torch.manual_seed(2)
    input_scale = some_input_scale(12) if smoothed else None
    layer = Int8Linear.from_float(nn.Linear(12, 7), activation=activation, input_scale=input_scale)
    layer.bias.requires_grad_()
    plain = Int8Linear.from_float(layer.to_float(), input_scale=input_scale)
    x, dx, dy = torch.randn(2, 3, 12), torch.randn(2, 3, 12), torch.randn(2, 3, 7)
    z = output(plain, x).requires_grad_()
    (dz,) = torch.autograd.grad(FLOAT_ACTIVATIONS[activation](z), z, dy)
    weight = layer.weight.clone()
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    y.backward(dy)
    torch.testing.assert_close(leaf.grad, dz @ weight)
    torch.testing.assert_close(layer.bias.grad, dz.sum((0, 1)))
    assert torch.equal(y, output(layer, x))
    layer.bias.grad = None
    layer(x).backward(dy)  # the bias alone
    torch.testing.assert_close(layer.bias.grad, dz.sum((0, 1)))
    layer.bias.requires_grad_(False)
    torch.testing.assert_close(torch.func.vjp(layer, x)[1](dy)[0], dz @ weight)
    torch.testing.assert_close(torch.vmap(layer)(x), output(layer, x))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, dx))).tangent
    torch.testing.assert_close((tangent * dy).sum(), (dx * (dz @ weight)).sum())
    v = torch.randn(7)
    through_bias = torch.func.jvp(lambda b: torch.func.functional_call(layer, {"bias": b}, (x,)), (layer.bias,), (v,))
    torch.testing.assert_close((through_bias[1] * dy).sum(), (dz * v).sum())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_derivatives(activation: str) -> None:
    torch.manual_seed(3)
    layer = Int8Linear.from_float(nn.Linear(6, 4), activation=activation)
    x, v = torch.randn(5, 6).requires_grad_(), torch.randn(5, 6)
    (first,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    if activation in ("none", "relu"):
        assert not first.requires_grad  # piecewise linear
        return
    (second,) = torch.autograd.grad((first * v).sum(), x)
    z = output(Int8Linear.from_float(layer.to_float()), x.detach()).requires_grad_()
    (slope,) = torch.autograd.grad(FLOAT_ACTIVATIONS[activation](z).sum(), z, create_graph=True)
    weight = layer.weight.clone()
    (curved,) = torch.autograd.grad((slope * (v @ weight.t())).sum(), z)
    torch.testing.assert_close(second, curved @ weight)


def test_weights_that_from_float_refuses() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    patched = nn.Linear(4, 4)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    broken = nn.Linear(4, 4)
    nn.init.constant_(broken.weight, float("nan"))
    for module, reason in [
        (nn.Conv1d(4, 4, 1), "not an nn.Linear"),
        (nn.MultiheadAttention(4, 2).out_proj, "reads its weight as a matrix"),
        (Int8Linear.from_float(nn.Linear(4, 4)), "forward of its own"),
        (Own(4, 4), "forward of its own"),
        (patched, "forward of its own"),
        (prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), "computed by a hook"),
        (nn.LazyLinear(4), "not initialised"),
        (nn.Linear(4, 4).double(), "float64"),
        (nn.Linear(4, 4, device="meta"), "meta"),
        (nn.Linear(0, 4), "empty"),
        (broken, "NaN or infinity, first in row 0"),
    ]:
        with pytest.raises(ValueError, match=reason):
            Int8Linear.from_float(module)
    parametrized = parametrizations.weight_norm(nn.Linear(4, 4))
    layer = Int8Linear.from_float(parametrized)
    steps = layer.canonical_tensors()["weight_scale"][:, None]
    assert torch.all((layer.weight - parametrized.weight).abs() <= steps * 0.5001)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "tanh"}, "gelu_tanh"),
        ({"activation": 2}, "expected one of"),
        ({"x_scale": -1.0}, "x_scale"),
        ({"x_scale": float("nan")}, "x_scale"),
        ({"x_scale": 1e-40}, "x_scale"),
        ({"x_scale": 1e39}, "x_scale"),
        ({"x_zero_point": 256}, "x_zero_point"),
        ({"x_zero_point": 1.0}, "x_zero_point"),
        ({"in_features": 0}, "in_features"),
        ({"out_features": 1 << 31}, "out_features"),
        ({"bias": 1}, "bias"),
        ({"smoothed": 1}, "smoothed"),
        ({"smoothed": None}, "smoothed"),
        ({"dtype": "float64"}, "dtype"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    config = Int8Linear.from_float(nn.Linear(4, 4)).config()
    with pytest.raises(ValueError, match=message):
        Int8Linear.from_config({**config, **settings})
    with pytest.raises(ValueError, match=message):
        Int8Linear.expected_tensors({**config, **settings})


def test_no_bias() -> None:
    layer = Int8Linear.from_float(nn.Linear(8, 4, bias=False).bfloat16())
    assert layer.bias is None
    assert set(layer.state_dict()) == {"weight_q", "weight_scale"}
    assert list(layer.parameters()) == []
    assert layer.dtype == layer.weight.dtype == torch.bfloat16
    assert layer.half().weight.dtype == torch.float16
    assert layer.to_float().bias is None


def test_made_under_inference_mode_and_meta_context() -> None:
    module = nn.Linear(8, 4)
    with torch.inference_mode(), torch.device("meta"):
        layer = Int8Linear.from_float(module, activation="silu")
    layer(torch.randn(2, 8).requires_grad_()).sum().backward()
    assert not layer.packed.is_inference()
    assert not layer.bias.is_inference()


_PEAK = """
import torch
from tersor.nn import Int8Linear
torch.set_num_threads(1)
def peak():  # KiB; not ru_maxrss, which starts at the parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
Int8Linear.from_float(torch.nn.Linear(64, 64))(torch.zeros(1, 64))
module = torch.nn.Linear(8192, 8192)
before = peak()
layer = Int8Linear.from_float(module)
print(peak() - before, layer.packed.numel() >> 10)
"""


def test_peak_memory_of_from_float_is_the_packed_weight_and_one_block() -> None:
    """8192 x 8192: 256 MiB float, 64 MiB packed. Allowed beyond the two: 16 MiB for the block being quantised."""
    done = subprocess.run([sys.executable, "-c", _PEAK], check=True, capture_output=True, text=True)
    growth, packed = map(int, done.stdout.split())
    assert packed >= 64 << 10
    assert growth <= packed + (16 << 10)

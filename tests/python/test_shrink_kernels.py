"""Smaller kernels: least squares finds what they can do, limits, files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_models import assert_same
from restructure_data import batches, images
from torch import nn

import tersor
from tersor import structure
from tersor.restructure import shrink_kernels


def large(kernel: int = 5, **settings: Any) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 9, kernel, padding=kernel // 2, **settings), nn.ReLU(), nn.Conv2d(9, 4, 1)).eval()


@pytest.mark.parametrize("method", ["single", "separable"])
def test_what_a_small_kernel_can_do_is_found_exactly(method: Any) -> None:
    model = large(7, stride=2)
    with torch.no_grad():
        weight = torch.zeros_like(model[0].weight)
        inner = torch.randn(9, 3, 3, 3)
        if method == "separable":
            inner = torch.randn(9, 3, 1, 1) * torch.randn(1, 3, 3, 3)
        weight[:, :, 2:5, 2:5] = inner
        model[0].weight.copy_(weight)
    data = images()
    expected = [model(x) for x in data]
    result = shrink_kernels(model, data, method=method)
    assert result.rows[0].error < 1e-4
    assert result.rows[0].weights_after < result.rows[0].weights_before
    for x, y in zip(data, expected, strict=True):
        torch.testing.assert_close(model(x), y, rtol=1e-3, atol=1e-3)


def test_stacked_is_exact_with_enough_channels() -> None:
    torch.manual_seed(0)
    for kernel, inputs in ((5, 1), (7, 1)):
        model = nn.Sequential(nn.Conv2d(inputs, 30, kernel, padding=2, stride=2), nn.ReLU()).eval()
        data = batches(8, inputs, 15, 12, count=2)
        expected = [model(x) for x in data]
        result = shrink_kernels(model, data, method="stacked")
        assert result.rows[0].error < 1e-3, kernel
        for x, y in zip(data, expected, strict=True):
            torch.testing.assert_close(model(x), y, rtol=1e-3, atol=2e-3)


def test_the_fit_is_the_best_there_is() -> None:
    """Against numpy's least squares on the same patches, and better than cutting the kernel's rim off."""
    model, data = large(5), images()
    conv: Any = copy.deepcopy(model[0])
    patches = torch.cat([nn.functional.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 27) for x in data])
    wanted = torch.cat([conv(x).permute(0, 2, 3, 1).reshape(-1, 9) for x in data]).detach()
    design = torch.cat([patches, torch.ones(len(patches), 1)], 1).double()
    best = torch.linalg.lstsq(design, wanted.double(), driver="gelsd").solution
    error = float((design @ best - wanted).norm() / wanted.double().norm())
    result = shrink_kernels(model, data)
    assert result.rows[0].error == pytest.approx(error, rel=1e-4)
    cut = nn.functional.conv2d(data[0], conv.weight[:, :, 1:4, 1:4], conv.bias, padding=1)
    fitted = model[0](data[0])
    true = conv(data[0])
    assert float((fitted - true).norm()) < float((cut - true).norm())


def test_grouped_and_depthwise_kernels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 5, padding=2, groups=2), nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)
    ).eval()
    with torch.no_grad():
        for layer in model:
            rim = torch.zeros_like(layer.weight)
            rim[:, :, 1:4, 1:4] = layer.weight[:, :, 1:4, 1:4]
            layer.weight.copy_(rim)
    data = batches(4, 4, 9, 9)
    expected = model(data[0])
    result = shrink_kernels(model, data)
    assert [row.after for row in result.rows] == ["3x3", "3x3"]
    assert [layer.groups for layer in model] == [2, 8]
    torch.testing.assert_close(model(data[0]), expected, rtol=1e-3, atol=1e-3)


def test_a_later_layer_makes_up_for_an_earlier_one() -> None:
    """Fitted to the float model's outputs on what the changed model gives it, not on the float model's own inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.Conv2d(6, 4, 5, padding=2)).eval()
    data, teacher = images(), copy.deepcopy(model)
    shrink_kernels(model, data)
    apart = copy.deepcopy(teacher)
    shrink_kernels(apart, data, include=["2"])  # fitted on the float model's inputs
    mixed = nn.Sequential(model[0], nn.ReLU(), apart[2])
    together = sum(float((model(x) - teacher(x)).square().sum()) for x in data)
    separately = sum(float((mixed(x) - teacher(x)).square().sum()) for x in data)
    assert together < separately


def test_limits_and_reasons() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 5, padding=2),
        nn.Conv2d(4, 4, 5),
        nn.Conv2d(4, 4, (5, 3), padding=(2, 1)),
        nn.Conv2d(4, 4, 5, padding=4, dilation=2),
    ).eval()
    with pytest.raises(tersor.StructureError, match="no kernel can be shrunk") as caught:
        shrink_kernels(model, images(), max_error=1e-6)
    for part in ("0: the relative error", "1: it is padded by less", "2: its kernel is 5x3", "3: it is dilated"):
        assert part in str(caught.value)
    assert structure.records(model) == []
    with pytest.raises(tersor.StructureError, match="The model has none larger"):
        shrink_kernels(nn.Sequential(nn.Conv2d(3, 3, 3)), images())
    with pytest.raises(tersor.StructureError, match="unknown method 'halved'"):
        shrink_kernels(model, images(), method="halved")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["single", "stacked", "separable"])
def test_shrunk_models_save_and_load(tmp_path: Path, method: Any) -> None:
    model, data = large(5), images()
    shrink_kernels(model, data, method=method)
    tersor.save(model, tmp_path / "net.tersor")
    loaded = tersor.load(tmp_path / "net.tersor", large(5))
    assert_same(model, loaded)
    assert torch.equal(loaded(data[0]), model(data[0]))

"""Swapping in place and restoring: what is replaced, what stays, what users find afterwards."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

from tersor import SwapError, modules, restore, swap
from tersor.nn import Int8Linear
from tersor.tune import Verdict


def mlp(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48, bias=False), nn.Linear(48, 8)).to(dtype)


def reasons(model: nn.Module, **options: Any) -> dict[str, str]:
    """The reason of every layer that is kept."""
    report = swap(model, force=True, **options)
    return {row.name: row.reason for row in report.kept}


def only_reason(layer: nn.Module, **options: Any) -> str:
    """The reason why ``layer`` is kept, beside one that is swapped."""
    model = nn.ModuleDict({"layer": layer, "other": nn.Linear(8, 8)})
    found = reasons(model, **options)
    assert list(found) == ["layer"]
    assert model["layer"] is layer
    return found["layer"]


@pytest.mark.parametrize("dtype", modules.DTYPES)
def test_swap_computes_what_the_layers_compute(dtype: torch.dtype) -> None:
    model = mlp(dtype)
    expected = nn.Sequential(*(Int8Linear.from_float(m) if isinstance(m, nn.Linear) else m for m in model))
    report = swap(model, force=True)
    assert [type(module) for module in model] == [Int8Linear, nn.ReLU, Int8Linear, Int8Linear]
    x = torch.randn(5, 32).to(dtype)
    y = model(x)
    assert y.dtype == dtype
    assert torch.equal(y, expected(x))
    assert [(row.name, row.action, row.shape, row.forced) for row in report.rows] == [
        ("0", "swapped", (64, 32), True),
        ("2", "swapped", (48, 64), True),
        ("3", "swapped", (8, 48), True),
    ]
    assert all("force=True" in row.reason for row in report.rows)


def test_report_counts_bytes() -> None:
    model = mlp()
    float_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    report = swap(model, force=True, exclude=["3"], keep_float=False)
    row = report.rows[0]
    assert (row.bytes_before, report.totals.bytes_before) == (4 * (64 * 32 + 64), float_bytes)
    assert row.bytes_after == model[0].packed.numel() + 4 * 64
    assert report.rows[2].bytes_after == report.rows[2].bytes_before == 4 * (8 * 48 + 8)
    assert report.totals.bytes_after == sum(row.bytes_after for row in report.rows)
    assert report.totals.parameters == float_bytes // 4
    assert (report.totals.swapped, report.totals.kept) == (2, 1)


def test_restore_gives_the_very_modules_back() -> None:
    model = mlp()
    before = list(model)
    x = torch.randn(7, 32)
    expected = model(x)
    swap(model, force=True)
    model.eval()
    assert not torch.equal(model(x), expected)
    assert restore(model) == 3
    assert all(now is then for now, then in zip(model, before, strict=True))
    assert torch.equal(model(x), expected)
    assert not any(module.training for module in model)


def test_restore_without_float_dequantises() -> None:
    model = mlp()
    model[0].note = "mine"
    swap(model, force=True, keep_float=False)
    weight = model[0].weight.clone()
    restore(model)
    assert type(model[0]) is nn.Linear
    assert torch.equal(model[0].weight, weight)
    assert model[0].note == "mine"
    assert not [key for key in model[0].__dict__ if "tersor" in key or "x_scale" in key]


def test_restore_follows_what_was_done_since() -> None:
    model = mlp()
    float_weight = model[0].weight
    swap(model, force=True)
    model.to(torch.bfloat16)
    restore(model)
    assert model[0].weight is float_weight
    assert model[0].weight.dtype == torch.bfloat16

    model = mlp()
    swap(model, force=True)
    other = mlp()
    with torch.no_grad():
        other[0].weight.mul_(2)
    swap(other, force=True)
    model.load_state_dict(other.state_dict())
    loaded = model[0].weight.clone()
    restore(model)
    assert torch.equal(model[0].weight, loaded)


def test_copies_and_pickles_leave_the_float_layers_behind() -> None:
    model = mlp()
    x = torch.randn(3, 32)
    swap(model, force=True)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(clone(x), model(x))
        restore(clone)
        assert torch.equal(clone[0].weight, model[0].weight)
    assert len(pickle.dumps(model)) < 4 * sum(module.packed.numel() for module in model if hasattr(module, "packed"))


def test_nothing_to_restore_is_loud() -> None:
    with pytest.raises(SwapError, match="nothing to restore"):
        restore(mlp())
    with pytest.raises(SwapError, match="to_float"):
        restore(Int8Linear.from_float(nn.Linear(4, 4)))
    fused = nn.Sequential(Int8Linear.from_float(nn.Linear(4, 4), activation="relu"), nn.Linear(4, 4))
    with pytest.raises(SwapError, match="fused activation"):
        restore(fused)


def test_a_bare_linear_is_refused_with_the_way_out() -> None:
    with pytest.raises(SwapError, match=r"Int8Linear\.from_float"):
        swap(nn.Linear(4, 4), force=True)


@pytest.mark.parametrize("model", [3, None, "model"])
def test_no_module(model: Any) -> None:
    with pytest.raises(SwapError, match=r"expected an nn\.Module"):
        swap(model)


def test_compiled_and_scripted_models_are_refused() -> None:
    with pytest.raises(SwapError, match="compiled already"):
        swap(torch.compile(mlp()), force=True)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(mlp())
    with pytest.raises(SwapError, match="ScriptModule"):
        swap(scripted, force=True)


def test_zero_swapped_lists_why() -> None:
    model = nn.Sequential(nn.Linear(8, 8).double(), nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(SwapError) as caught:
        swap(model, exclude=["[12]"], force=True)
    text = str(caught.value)
    assert "0: its weight is torch.float64" in text
    assert "1, 2: excluded by '[12]'" in text
    assert all(type(module) is nn.Linear for module in model)
    with pytest.raises(SwapError, match="holds no linear layer"):
        swap(nn.Sequential(nn.Conv2d(3, 3, 3)), force=True)
    swap(nn.Sequential(model[1]), force=True)
    accelerated = nn.Sequential(Int8Linear.from_float(model[1]))
    with pytest.raises(SwapError, match="accelerated already"):
        swap(accelerated, force=True)


class Pool(nn.Module):
    """A model with names two levels deep."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        self.pooler = nn.Sequential(nn.Linear(8, 8))


@pytest.mark.parametrize(
    ("include", "exclude", "swapped"),
    [
        ([], [], ["encoder.0", "encoder.1", "pooler.0"]),
        (["encoder.*"], [], ["encoder.0", "encoder.1"]),
        (["encoder.*"], ["*.1"], ["encoder.0"]),
        (["encoder.0", "pooler.?"], [], ["encoder.0", "pooler.0"]),
        ([], ["encoder.[!0]"], ["encoder.0", "pooler.0"]),
    ],
)
def test_patterns(include: list[str], exclude: list[str], swapped: list[str]) -> None:
    report = swap(Pool(), include=include, exclude=exclude, force=True)
    assert [row.name for row in report.swapped] == swapped
    assert report.warnings == ()


def test_patterns_that_match_nothing_are_loud() -> None:
    with pytest.raises(SwapError, match=r"include pattern 'encodr\.0' matches no module.*encoder"):
        swap(Pool(), include=["encodr.0"], force=True)
    with pytest.warns(UserWarning, match=r"exclude pattern '\*\.pooler\.\*' matches no module"):
        report = swap(Pool(), exclude=["*.pooler.*"], force=True)
    assert "matches no module" in report.warnings[0]
    with pytest.warns(
        UserWarning, match=r"exclude pattern 'pooler' matches modules but no layer that can be replaced.*'pooler\.\*'"
    ):
        report = swap(Pool(), exclude=["pooler"], force=True)
    assert len(report.swapped) == 3


def test_shared_instances_stay_shared() -> None:
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU()), "c": nn.Linear(8, 8)})
    report = swap(model, force=True)
    assert model["a"] is model["b"][0]
    assert isinstance(model["a"], Int8Linear)
    assert [(row.name, row.aliases) for row in report.rows] == [("a", ("b.0",)), ("c", ())]
    restore(model)
    assert model["a"] is model["b"][0] is shared
    report = swap(model, exclude=["b.*"], force=True)
    assert [row.name for row in report.swapped] == ["c"]


class TiedHead(nn.Module):
    """A language model in small: the head shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(self.embedding(tokens)))
        return y


def test_tied_weights_are_kept() -> None:
    model = TiedHead()
    assert reasons(model) == {"head": "its weight is tied to embedding.weight; untie=True gives it its own"}
    assert model.head.weight is model.embedding.weight


def test_tied_weights_can_be_untied_and_tied_again() -> None:
    model = TiedHead()
    tokens = torch.arange(20)
    expected = model(tokens)
    assert reasons(model, untie=True) == {}
    assert isinstance(model.head, Int8Linear)
    assert (model(tokens) - expected).norm() < 0.03 * expected.norm()
    restore(model)
    assert model.head.weight is model.embedding.weight


def test_weights_that_overlap_in_memory_are_tied() -> None:
    both = torch.randn(16, 8)
    one, other, apart = (nn.Linear(8, 8, bias=False) for _ in range(3))
    one.weight, other.weight = nn.Parameter(both[:8]), nn.Parameter(both[4:12])
    found = reasons(nn.ModuleList([one, other, apart]))
    assert found == {
        "0": "its weight is tied to 1.weight; untie=True gives it its own",
        "1": "its weight is tied to 0.weight; untie=True gives it its own",
    }
    one.weight, other.weight = nn.Parameter(both[:8]), nn.Parameter(both[8:])
    assert reasons(nn.ModuleList([one, other])) == {}


class Scaled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def with_forward() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


def with_buffer() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.register_buffer("mask", torch.ones(8))
    return layer


def with_nan() -> nn.Module:
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight[3, 3] = float("nan")
    return layer


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weight_norm(nn.Linear(8, 8))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Linear(8, 8).double(), "its weight is torch.float64; supported: float32, bfloat16, float16"),
        (lambda: nn.Linear(8, 8, dtype=torch.complex64), "its weight is torch.complex64"),
        (lambda: nn.Linear(8, 8, device="meta"), "its weight is on meta; only the CPU is supported"),
        (lambda: nn.Linear(0, 8), "its weight is empty"),
        (lambda: nn.LazyLinear(8), "is lazy and has no weight yet"),
        (lambda: Scaled(8, 8), "Scaled is a subclass that may behave differently"),
        (lambda: parametrizations.weight_norm(nn.Linear(8, 8)), "is parametrized"),
        (lambda: parametrizations.spectral_norm(nn.Linear(8, 8)), "is parametrized"),
        (old_weight_norm, "its weight is computed by a hook"),
        (lambda: prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5), "its weight is computed by a hook"),
        (with_forward, "its forward was replaced on the instance"),
        (with_buffer, "carries more than a weight and a bias: mask"),
        (with_nan, "its weight holds NaN or infinity"),
        (lambda: Int8Linear.from_float(nn.Linear(8, 8)), "is accelerated already"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_what_stays_float(make: Callable[[], nn.Module], reason: str) -> None:
    assert reason in only_reason(make())


def test_peft_adapters_are_kept() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: adapters are not tested")
    model = peft.get_peft_model(Pool(), peft.LoraConfig(target_modules=["pooler.0"]))
    found = reasons(model)
    assert len(found) == 3
    assert set(found.values()) == {"belongs to a PEFT adapter; call merge_and_unload first"}


def test_hooks_and_attributes_come_along() -> None:
    model = mlp()
    calls: list[str] = []
    model[0].register_forward_hook(lambda module, args, y: calls.append(f"forward {type(module).__name__}"))
    handle = model[0].register_forward_pre_hook(lambda module, args: calls.append("pre"))
    model[2].register_full_backward_hook(lambda module, grad_in, grad_out: calls.append("backward"))
    model[0].note = ["mine"]
    model[0].bias.requires_grad_(False)
    model[3].eval()
    swap(model, force=True)
    assert model[0].note == ["mine"]
    assert [module.training for module in model] == [True, True, True, False]
    assert not model[0].bias.requires_grad
    assert model[3].bias.requires_grad
    x = torch.randn(4, 32, requires_grad=True)
    model(x).sum().backward()
    assert calls == ["pre", "forward Int8Linear", "backward"]
    assert x.grad is not None
    assert model[3].bias.grad is not None
    calls.clear()
    handle.remove()
    model(x)
    assert calls == ["forward Int8Linear"]
    restore(model)
    calls.clear()
    model(x)
    assert calls == ["forward Linear"]


def test_the_surface_of_a_linear_stays() -> None:
    model = mlp()
    weight = model[0].weight.detach().clone()
    swap(model, force=True)
    layer = model[0]
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features, layer.weight.shape) == (32, 64, (64, 32))
    assert layer.weight.dtype == torch.float32
    assert (layer.weight - weight).abs().max() <= weight.abs().max() / 254 * 1.001
    assert dict(model.named_modules())["0"] is layer
    assert model[2].bias is None


def test_only_what_is_faster_is_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Judge:
        def judge(self, layer: nn.Linear, rows: tuple[int, ...], dtype: torch.dtype) -> Verdict:
            asked.append((layer.in_features, rows, dtype))
            faster = layer.in_features != 64
            return Verdict(faster, {1: 10.0}, {1: 5.0 if faster else 9.9}, 0.05, "yes" if faster else "no")

    monkeypatch.setattr("tersor.selection.Tuner", Judge)
    model = mlp(torch.bfloat16)
    report = swap(model)
    rows = (1, 4, 16, 64, 256)
    assert asked == [(k, rows, torch.bfloat16) for k in (32, 64, 48)]
    assert [(row.action, row.reason, row.rows) for row in report.rows] == [
        ("swapped", "yes", rows),
        ("kept", "no", rows),
        ("swapped", "yes", rows),
    ]
    assert (report.rows[1].float_us, report.rows[1].tersor_us) == ({1: 10.0}, {1: 9.9})
    with pytest.raises(SwapError, match=r"0: no\nLayers that are not faster.*force=True"):
        swap(nn.Sequential(nn.Linear(64, 8)))


def test_this_host_decides_a_large_layer() -> None:
    model = nn.Sequential(nn.Linear(1024, 1024))
    try:
        report = swap(model, progress=False)
    except SwapError as error:
        assert "float" in str(error)  # noqa: PT017
        assert type(model[0]) is nn.Linear
    else:
        assert report.rows[0].float_us.keys() == report.rows[0].tersor_us.keys() == {1, 4, 16, 64, 256}
        assert all(report.rows[0].float_us[rows] > report.rows[0].tersor_us[rows] for rows in (1, 4, 16, 64, 256))


def test_static_ranges() -> None:
    model = mlp()
    swap(model, force=True, ranges={"2": (0.02, 10)})
    assert [(model[i].x_scale, model[i].x_zero_point) for i in (0, 2, 3)] == [(0.0, 0), (0.02, 10), (0.0, 0)]
    with pytest.raises(SwapError, match="no linear layer is called 7"):
        swap(mlp(), force=True, ranges={"7": (0.1, 0)})
    report = swap(mlp(), force=True, ranges={"0": (-1.0, 0)})
    assert "can't be converted: x_scale" in report.rows[0].reason


def test_float_layers_are_freed_one_by_one() -> None:
    import gc
    import weakref

    model = mlp()
    refs = [weakref.ref(module) for module in model if isinstance(module, nn.Linear)]
    swap(model, force=True, keep_float=False)
    gc.collect()
    assert [ref() for ref in refs] == [None, None, None]


def test_gradients_reach_layers_below() -> None:
    model = mlp()
    swap(model, force=True, exclude=["0"])
    model(torch.randn(4, 32)).sum().backward()
    assert model[0].weight.grad is not None
    assert float(model[0].weight.grad.abs().sum()) > 0

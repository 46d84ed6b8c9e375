"""What is done to a whole model around quantisation: equalisation, batch norms, bits per layer."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor import Recipe, RecipeError, SwapError, steps
from tersor.nn.float_linear import weight_matrix
from tersor.quantize.batch_norm import reestimate_batch_norm
from tersor.quantize.codebooks import decode, make_codebook
from tersor.quantize.equalize import equalize, find_pairs
from tersor.quantize.mixed import Measure, bit_sensitivity, choose_bits


def uneven(seed: int = 0) -> nn.Sequential:
    """Channels of very different ranges, as in networks with depthwise convolutions after folding."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 4, 10),
        nn.LeakyReLU(),
        nn.Linear(10, 3),
    )
    with torch.no_grad():
        for first, second, repeat in ((0, 2, 1), (2, 6, 4), (6, 8, 1)):
            weight, later = model[first].weight, model[second].weight
            assert isinstance(weight, Tensor)
            assert isinstance(later, Tensor)
            factor = torch.logspace(-1.5, 1.5, len(weight))[torch.randperm(len(weight))]
            weight.mul_(factor.reshape(-1, *[1] * (weight.dim() - 1)))
            later.div_(factor.repeat_interleave(repeat).reshape(1, -1, *[1] * (later.dim() - 2)))
    return model


def rounded_error(model: nn.Sequential, x: Tensor, bits: int, reference: Tensor) -> float:
    """The error of the output when every weight has one scale for the whole layer."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for index in (0, 2, 6, 8):
            weight = made[index].weight
            assert isinstance(weight, Tensor)
            flat = weight.reshape(1, -1)
            weight.copy_(decode(make_codebook("linear").fit(flat, bits)).view_as(weight))
        return float((made(x) - reference).norm() / reference.norm())


def test_equalisation_keeps_the_function_and_helps_scales_per_layer() -> None:
    model, x = uneven(), torch.randn(16, 2, 8, 8)
    with torch.no_grad():
        expected = model(x)
    plain = rounded_error(model, x, 8, expected)
    pairs = equalize(model)
    assert [(pair.first, pair.second) for pair in pairs] == [("0", "2"), ("2", "6"), ("6", "8")]
    assert all(pair.after < pair.before / 3 for pair in pairs)
    with torch.no_grad():
        assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-4)
    assert rounded_error(model, x, 8, expected) < plain / 2


class Flows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(4, 4) for _ in range(5))
        self.conv, self.grouped, self.wide = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Linear(3, 3)

    def forward(self, x: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        y = self.b(torch.relu(self.a(x)))
        z = self.c(torch.sigmoid(y))  # a factor does not pass a sigmoid
        z = self.d(z) + z  # the output of c goes two ways
        return self.e(z.relu()), self.wide(self.grouped(self.conv(picture)))


def test_only_pairs_that_a_factor_passes_are_equalised() -> None:
    assert find_pairs(Flows()) == [("a", "b")]
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert find_pairs(tied) == []
    assert find_pairs(nn.Sequential(nn.Linear(4, 6), nn.Flatten(), nn.Linear(18, 2))) == []
    assert find_pairs(nn.Sequential(nn.Conv2d(1, 3, 1), nn.Linear(3, 3))) == []

    class Untraceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(SwapError, match="can't trace"):
        find_pairs(Untraceable())


def test_dead_channels_survive_equalisation() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[1] = 0
        model[2].weight[:, 2] = 0
    x = torch.randn(5, 3)
    expected = model(x)
    equalize(model)
    assert torch.allclose(model(x), expected, rtol=1e-5, atol=1e-6)


def test_a_recipe_equalises_what_it_selects() -> None:
    model, x = uneven(), torch.randn(16, 2, 8, 8)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = Recipe([steps.Equalize(), steps.Quantize(smooth=0)], include=["6", "8"])
    result = tersor.compress(model, recipe, x, force=True, progress=False)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(result.model[0].weight, model[0].weight)
    assert any("equalised 1 pairs of layers" in note for note in result.report.notes)
    assert result.report.totals.output_cosine is not None
    assert result.report.totals.output_cosine > 0.999
    with pytest.raises(RecipeError, match="rounds = 0"):
        steps.Equalize(rounds=0)
    with pytest.raises(RecipeError, match="as they are rounded"):
        Recipe([steps.QAT(), steps.Equalize()]).check_order()


def norm_model() -> nn.Sequential:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))
    with torch.no_grad():
        for _ in range(50):
            model(torch.randn(64, 12) + 1)
    return model.eval()


def test_reestimated_batch_norms_help_a_coarsely_rounded_model() -> None:
    model = norm_model()
    data = [torch.randn(64, 12) + 1 for _ in range(6)]
    with torch.no_grad():
        expected = model(data[0])
        coarse = copy.deepcopy(model)
        coarse[0].weight.copy_(decode(make_codebook("linear").fit(model[0].weight, 2)) * 0.7)
        before = float((coarse(data[0]) - expected).norm())
        coarse.train()
        coarse[4].eval()
        assert reestimate_batch_norm(coarse, data[1:], progress=False) == 1
        assert [module.training for module in coarse] == [True, True, True, True, False]
        coarse.eval()
        assert float((coarse(data[0]) - expected).norm()) < 0.8 * before
        hidden = torch.cat([coarse[0](batch) for batch in data[1:]])
    norm = coarse[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.momentum == 0.1
    assert torch.allclose(norm.running_mean, hidden.mean(0), atol=1e-5)


def test_reestimation_that_fails_changes_nothing() -> None:
    model = norm_model()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SwapError, match="failed on batch 1"):
        reestimate_batch_norm(model, [torch.randn(4, 12), torch.randn(4, 13)], progress=False)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(SwapError, match="no batch"):
        reestimate_batch_norm(norm_model(), [], progress=False)
    with pytest.raises(SwapError, match="no batch norm"):
        reestimate_batch_norm(nn.Linear(2, 2), [torch.ones(1, 2)], progress=False)


def test_the_choice_of_bits_is_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(5):
        weights = {str(index): int(torch.randint(10, 1000, (), generator=generator)) for index in range(5)}
        errors = {
            name: {bits: float(torch.rand((), generator=generator)) * 4.0**-bits for bits in (2, 4, 8)}
            for name in weights
        }
        total = sum(weights.values())
        for average in (2.0, 3.3, 5.0, 8.0):
            chosen = choose_bits(errors, weights, average)
            options = [dict(zip(weights, bits, strict=True)) for bits in itertools.product((2, 4, 8), repeat=5)]
            fits = [one for one in options if sum(weights[n] * b for n, b in one.items()) <= average * total]
            # Sizes are rounded up to 1/8192 of the spare budget, so a budget that much smaller bounds the loss.
            tight = 2 + (average - 2) * (1 - 5 / 8192)
            bound = [one for one in options if sum(weights[n] * b for n, b in one.items()) <= tight * total + 1e-6]
            cost = sum(errors[name][bits] for name, bits in chosen.items())
            assert chosen in fits
            assert cost <= min(sum(errors[n][b] for n, b in one.items()) for one in bound) * (1 + 1e-9)
    with pytest.raises(ValueError, match="less than the fewest bits"):
        choose_bits({"a": {4: 0.0}}, {"a": 1}, 3)


@pytest.mark.parametrize("measure", ["hessian", "output"])
def test_the_scan_measures_what_it_says(measure: Measure) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [torch.randn(64, 16)]
    scan = bit_sensitivity(model, batches, bits=(2, 4, 8), measure=measure, progress=False)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert sorted(scan.errors) == ["0", "2", "4"]
    assert all(errors[2] > errors[4] > errors[8] for errors in scan.errors.values())
    assert scan.weights == {name: weight_matrix(model[int(name)]).numel() for name in ("0", "2", "4")}
    with torch.no_grad():
        x = model[:4](batches[0])  # what layer "4" is given
        expected = model(batches[0])
        weight = model[4].weight
        assert isinstance(weight, Tensor)
        counts = None if measure == "output" else x.square().mean(0)
        rounded = decode(make_codebook("linear").fit(weight, 2, None, counts))
        reference = expected if measure == "output" else x @ weight.t()
        error = float((x @ (rounded - weight).t()).square().sum() / reference.square().sum())
    # The second moments come with 8-bit activations, which add little to what 2 bits lose.
    assert scan.errors["4"][2] == pytest.approx(error, rel=1e-4 if measure == "output" else 1e-2)


def test_the_scan_proposes_bits_within_the_size() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 4))
    batches = [torch.randn(32, 16)]
    scan = bit_sensitivity(model, batches, progress=False)
    bits = scan.propose(4)
    assert sum(bits[name] * count for name, count in scan.weights.items()) <= 4 * sum(scan.weights.values())
    even = sum(errors[4] for errors in scan.errors.values())
    assert sum(scan.errors[name][count] for name, count in bits.items()) <= even
    assert scan.worst()[0] == max(scan.errors, key=lambda name: scan.errors[name][2])
    assert list(bit_sensitivity(model, batches, include=["4"], bits=(4,), progress=False).errors) == ["4"]
    with pytest.raises(ValueError, match="measure"):
        bit_sensitivity(model, batches, measure="norm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no linear layer"):
        bit_sensitivity(model, batches, exclude=["*"])

"""The native encoder block: against its definition in float64, as a torch op, with wrong arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tersor import kernels
from tersor.errors import TersorError
from tersor.ops import ENCODER_BLOCK

NONE = torch.empty(0)
FLOATS = NDArray[np.float32]


@dataclass
class Block:
    config: dict[str, Any]
    weights: list[Tensor]  # float64, what the int8 weights stand for
    biases: list[FLOATS]
    norms: list[FLOATS]
    packed: NDArray[np.uint8]

    def reference(self, x: Tensor, keep: Tensor, score_bias: Tensor | None = None) -> Tensor:
        """The block in float64 with the weights that were packed."""
        config = self.config
        biases = [torch.from_numpy(b).double() for b in self.biases]
        norms = [torch.from_numpy(n).double() for n in self.norms]
        heads, depth = config["heads"], config["head_dim"]

        def product(i: int, v: Tensor) -> Tensor:
            return v @ self.weights[i].T + biases[i]

        def norm(i: int, v: Tensor) -> Tensor:
            return nn.functional.layer_norm(v, v.shape[-1:], norms[2 * i], norms[2 * i + 1], config[f"eps{i + 1}"])

        def attention(v: Tensor) -> Tensor:
            q, k, v = product(0, v).unflatten(-1, (3, heads, depth)).permute(2, 0, 3, 1, 4)
            scores = q @ k.transpose(-1, -2) * config["scale"] + (0 if score_bias is None else score_bias.double())
            scores = scores.masked_fill(~keep[:, None, None, :], -1e30)
            return product(1, (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

        activation = {"gelu": nn.functional.gelu, "relu": torch.relu}[config["activation"]]
        x = x.double()
        h = x + attention(norm(0, x)) if config["norm_first"] else norm(0, x + attention(x))
        inner = norm(1, h) if config["norm_first"] else h
        y = h + product(3, activation(product(2, inner)))
        return (y if config["norm_first"] else norm(1, y)) * keep[..., None]


def make_block(
    rng: np.random.Generator, norm_first: bool, sparse: bool = False, heads: int = 4, depth: int = 24
) -> Block:
    hidden, ffn = 96, 200
    width = heads * depth
    config = {"hidden": hidden, "heads": heads, "head_dim": depth, "ffn": ffn, "norm_first": norm_first}
    config |= {"activation": "relu" if sparse else "gelu", "eps1": 1e-5, "eps2": 1e-12, "scale": depth**-0.5}
    packed, weights, biases = [], [], []
    for n, k in ((3 * width, hidden), (hidden, width), (ffn, hidden), (hidden, ffn)):
        weight = rng.integers(-127, 128, (n, k), dtype=np.int8)
        if sparse:
            weight *= np.repeat(rng.random((n, k // 4)) < 0.4, 4, 1).astype(np.int8)
        scale = rng.uniform(0.5, 1.5, n).astype(np.float32) / np.float32(64 * k**0.5)
        packed.append((kernels.pack_sparse_s8 if sparse else kernels.pack_s8)(weight, scale))
        weights.append(torch.from_numpy(weight).double() * torch.from_numpy(scale).double()[:, None])
        biases.append(rng.uniform(-0.3, 0.3, n).astype(np.float32))
    norms = [rng.uniform(*((0.5, 1.5) if i % 2 == 0 else (-0.3, 0.3)), hidden).astype(np.float32) for i in range(4)]
    qkv, out, ffn_in, ffn_out = packed
    block = kernels.pack_encoder_block(config, qkv, out, ffn_in, ffn_out, biases, norms)
    return Block(config, weights, biases, norms, block)


def masks(rng: np.random.Generator, batch: int, tokens: int) -> Tensor:
    keep = torch.from_numpy(rng.random((batch, tokens)) < 0.7)
    keep[0] = True
    if batch > 2:
        keep[1] = False
        keep[2] = torch.arange(tokens) == tokens - 1
    return keep


def cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_near_float64(rng: np.random.Generator, norm_first: bool, sparse: bool) -> None:
    block = make_block(rng, norm_first, sparse)
    for batch, tokens, biased in ((4, 37, True), (1, 1, False), (2, 150, False)):
        x, keep = torch.randn(batch, tokens, 96), masks(rng, batch, tokens)
        score_bias = torch.randn(4, tokens, tokens) if biased else None
        bias_array = None if score_bias is None else score_bias.numpy()
        y = torch.from_numpy(kernels.encoder_block(x.numpy(), block.packed, keep.numpy(), bias_array))
        # Four products quantise their rows to 8 bits, which is about half a percent of a row each.
        assert cosine(y, block.reference(x, keep, score_bias)) > 0.9998
        assert not y[~keep].any()
        everything = kernels.encoder_block(x.numpy(), block.packed)
        assert cosine(torch.from_numpy(everything), block.reference(x, torch.ones_like(keep))) > 0.9998


def test_low_rank_weights(rng: np.random.Generator) -> None:
    """A factored product gives what the dense weight gives that it stands for, but for the rounding of its middle."""
    block = make_block(rng, norm_first=False)
    parts = kernels.inspect_encoder_block(block.packed)["parts"]
    weights = [block.packed[part["offset"] : part["offset"] + part["bytes"]] for part in parts]
    down = rng.integers(-127, 128, (16, 200), dtype=np.int8)
    up = rng.integers(-127, 128, (96, 16), dtype=np.int8)
    scale = np.full(16, 1e-3, np.float32), np.full(96, 1e-3, np.float32)
    weights[3] = kernels.pack_lowrank_s8(down, scale[0], up, scale[1])
    block.weights[3] = torch.from_numpy(up).double() @ torch.from_numpy(down).double() * 1e-6
    qkv, out, ffn_in, ffn_out = weights
    packed = kernels.pack_encoder_block(block.config, qkv, out, ffn_in, ffn_out, block.biases, block.norms)
    assert [part["kind"] for part in kernels.inspect_encoder_block(packed)["parts"]] == ["dense"] * 3 + ["low_rank"]
    x = torch.randn(2, 30, 96)
    y = torch.from_numpy(kernels.encoder_block(x.numpy(), packed))
    assert cosine(y, block.reference(x, torch.ones(2, 30, dtype=torch.bool))) > 0.9995


def test_padding_changes_nothing(rng: np.random.Generator) -> None:
    block = make_block(rng, norm_first=False)
    x, keep = torch.randn(3, 20, 96), torch.zeros(3, 20, dtype=torch.bool)
    keep[0, 13:] = keep[1, ::2] = True
    x[2], x[0, 0] = torch.nan, torch.inf
    y = kernels.encoder_block(x.numpy(), block.packed, keep.numpy().view(np.uint8))
    for row in range(2):
        alone = kernels.encoder_block(x[row : row + 1, keep[row]].contiguous().numpy(), block.packed)
        assert np.array_equal(y[row][keep[row].numpy()], alone[0])
    assert not y[~keep.numpy()].any()


def test_same_bits_everywhere(rng: np.random.Generator) -> None:
    block = make_block(rng, norm_first=True)
    x = rng.standard_normal((2, 33, 96)).astype(np.float32)
    parts = kernels.inspect_encoder_block(block.packed)["parts"]
    weights = [block.packed[part["offset"] : part["offset"] + part["bytes"]] for part in parts]
    canonical = [kernels.unpack_s8(weight) for weight in weights]
    want = kernels.encoder_block(x, block.packed)
    for isa in kernels.available():
        with kernels.use(isa):
            qkv, out, ffn_in, ffn_out = (kernels.pack_s8(*pair) for pair in canonical)
            packed = kernels.pack_encoder_block(block.config, qkv, out, ffn_in, ffn_out, block.biases, block.norms)
            assert np.array_equal(kernels.encoder_block(x, packed), want), isa


def test_inspection(rng: np.random.Generator) -> None:
    block = make_block(rng, norm_first=True, sparse=True, heads=3, depth=20)
    info = kernels.inspect_encoder_block(block.packed)
    scale = info.pop("scale")
    assert scale == np.float32(block.config["scale"])
    assert info["runnable"]
    assert {key: info[key] for key in ("hidden", "heads", "head_dim", "ffn", "norm_first", "activation")} == {
        key: block.config[key] for key in ("hidden", "heads", "head_dim", "ffn", "norm_first", "activation")
    }
    assert [(part["name"], part["kind"], part["n"], part["k"]) for part in info["parts"]] == [
        ("qkv", "sparse", 180, 96),
        ("out", "sparse", 96, 60),
        ("ffn_in", "sparse", 200, 96),
        ("ffn_out", "sparse", 96, 200),
    ]
    for name, values in zip(
        ("qkv_bias", "gamma1", "beta2"), (block.biases[0], block.norms[0], block.norms[3]), strict=True
    ):
        offset, count = info["floats"][name]
        assert np.array_equal(block.packed[offset : offset + 4 * count].view(np.float32), values)


def test_times(rng: np.random.Generator) -> None:
    block = make_block(rng, norm_first=False)
    times = kernels.encoder_block_times(rng.standard_normal((1, 40, 96)).astype(np.float32), block.packed)
    assert set(times) == {"qkv", "out", "ffn_in", "ffn_out", "int16", "attention", "norm", "rows"}
    assert all(seconds > 0 for seconds in times.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_op(rng: np.random.Generator, dtype: torch.dtype) -> None:
    block = make_block(rng, norm_first=False)
    packed, x, keep = torch.from_numpy(block.packed), torch.randn(3, 15, 96).to(dtype), masks(rng, 3, 15)
    score_bias = torch.randn(4, 15, 15)
    want = kernels.encoder_block(x.float().numpy(), block.packed, keep.numpy(), score_bias.numpy())
    assert torch.equal(ENCODER_BLOCK(x, keep, score_bias, packed), torch.from_numpy(want).to(dtype))
    assert torch.equal(ENCODER_BLOCK(x, keep.byte(), score_bias, packed), torch.from_numpy(want).to(dtype))
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(ENCODER_BLOCK(strided, keep, score_bias, packed), torch.from_numpy(want).to(dtype))
    one = x[:1, :1].expand(3, 15, 96)
    assert torch.equal(ENCODER_BLOCK(one, NONE, NONE, packed), ENCODER_BLOCK(one.contiguous(), NONE, NONE, packed))
    assert ENCODER_BLOCK(x[:0], NONE, NONE, packed).shape == (0, 15, 96)
    torch.library.opcheck(ENCODER_BLOCK, (x, keep, score_bias, packed))
    torch.library.opcheck(ENCODER_BLOCK, (strided, NONE, NONE, packed))


def test_compile_and_export(rng: np.random.Generator) -> None:
    packed = torch.from_numpy(make_block(rng, norm_first=True).packed)

    class Model(nn.Module):
        def forward(self, x: Tensor, keep: Tensor) -> Tensor:
            y: Tensor = ENCODER_BLOCK(x * 2, keep, NONE, packed)
            return y + 1

    model, x, keep = Model(), torch.randn(3, 8, 96), masks(rng, 3, 8)
    assert torch.equal(torch.compile(model, fullgraph=True)(x, keep), model(x, keep))
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (x, keep), dynamic_shapes=({0: batch}, {0: batch}))
    twice = torch.cat([x, x]), torch.cat([keep, keep])
    assert torch.equal(program.module()(*twice), model(*twice))


def test_wrong_arguments(rng: np.random.Generator) -> None:
    block = make_block(rng, norm_first=False)
    packed, x, keep = torch.from_numpy(block.packed), torch.randn(2, 5, 96), torch.ones(2, 5, dtype=torch.bool)
    for arguments, message in [
        ((x.double(), NONE, NONE, packed), "x: expected float32, bfloat16 or float16, got float64"),
        ((x[0], NONE, NONE, packed), r"x: expected shape \[batch, tokens, 96\], got \[5, 96\]"),
        ((x[..., 1:], NONE, NONE, packed), r"x: expected shape \[batch, tokens, 96\]"),
        ((x, keep[:, :4], NONE, packed), r"keep: expected shape \[2, 5\], got \[2, 4\]"),
        ((x, keep.long(), NONE, packed), "keep: expected uint8 or bool, got int64"),
        ((x, keep, torch.zeros(4, 5, 4), packed), r"score_bias: expected shape \[4, 5, 5\]"),
        ((x, keep, torch.zeros(4, 5, 5).double(), packed), "score_bias: expected float32, got float64"),
        ((x, keep, NONE, packed[:-1]), "damaged or the block is cut off"),
        ((x, keep, NONE, packed[:64].clone()), "too few for its header"),
        ((x.to_sparse(), keep, NONE, packed), "x: expected a dense tensor"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ENCODER_BLOCK(*arguments)


def test_wrong_parts(rng: np.random.Generator) -> None:
    block = make_block(rng, norm_first=False)
    parts = kernels.inspect_encoder_block(block.packed)["parts"]
    weights = [block.packed[part["offset"] : part["offset"] + part["bytes"]] for part in parts]

    def pack(weights: list[Any] = weights, biases: list[Any] = block.biases, **change: Any) -> None:
        kernels.pack_encoder_block({**block.config, **change}, *weights, biases, block.norms)

    pack()
    pack(biases=[None] * 4)
    for change, message in [
        ({"head_dim": 12, "biases": [None] * 4}, r"the weight of qkv is \[288, 96\], expected \[144, 96\]"),
        ({"weights": [*weights[:3], np.zeros(500, np.uint8)]}, "the weight of ffn_out is not a packed int8 weight"),
        ({"biases": [block.biases[1]] * 4}, r"qkv bias: expected shape \[288\]"),
        ({"biases": []}, "expected 4 arrays"),
        ({"activation": "tanh"}, "activation: 'tanh' is unknown"),
        ({"scale": "1"}, "config: 'scale' is '1'"),
        ({"eps2": -1.0}, "eps="),
    ]:
        with pytest.raises(TersorError, match=message):
            pack(**change)
    with pytest.raises(TersorError, match="'heads' is missing"):
        kernels.pack_encoder_block({"hidden": 96}, *weights, block.biases, block.norms)

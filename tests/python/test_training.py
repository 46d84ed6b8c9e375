"""The training loop: states that survive a kill, early stopping, rates, what is refused."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prune_models import loss, net, noise
from torch import Tensor, nn

from tersor import TrainError
from tersor.prune import Pruner, fit
from tersor.training import RATES, read_state, train, write_state

SCRIPT = Path(__file__).parent / "training_killed.py"


def run(state: Path, kill_after: int | None = None) -> list[str]:
    """The script's lines; it is killed when it has printed ``kill_after`` of them."""
    command = [sys.executable, "-W", "ignore", str(SCRIPT), str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        lines = []
        for line in child.stdout:
            lines.append(line.strip())
            if kill_after is not None and len(lines) == kill_after:
                child.send_signal(signal.SIGKILL)
                break
        else:
            assert child.wait() == 0
    return lines


def test_a_killed_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    """Bit for bit: dropout, shuffling, masks of a gradual pruning, the optimiser and the best epoch's weights."""
    whole = run(tmp_path / "whole")
    assert len(whole) == 13
    run(tmp_path / "killed", kill_after=4)  # within the second epoch, between two steps or while writing
    run(tmp_path / "killed", kill_after=3)
    last = run(tmp_path / "killed")
    assert last[-1].split()[:3] == whole[-1].split()[:3]
    assert last[-1].split()[4] == whole[-1].split()[4]
    resumed = int(last[-1].split()[3])
    assert 5 <= resumed <= 7
    assert len(last) == 13 - resumed


@pytest.mark.parametrize("step", [1, 3, 4, 5, 8, 9])
def test_interrupted_anywhere(step: int, tmp_path: Path) -> None:
    def trained(state: Path | None, stop: int | None = None) -> dict[str, Tensor]:
        calls = 0

        def counted(model: nn.Module, batch: Any) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            return loss(model, batch)

        model = net()
        torch.manual_seed(3)
        how: dict[str, Any] = {"criterion": "wanda", "criterion_loss": loss, "sparsity": 0.5, "removals": 4}
        fit(model, noise(3), counted, epochs=3, state=state, save_seconds=0, progress=False, **how)
        return model.state_dict()

    expected = trained(None)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "state", step)
    for key, value in trained(tmp_path / "state").items():
        assert torch.equal(value, expected[key]), key


def test_another_training_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    train(net(), noise(), loss, state=path, progress=False)
    with pytest.raises(TrainError, match=r"another training \(epochs 1, now 2, clip None, now 1\.0\)"):
        train(net(), noise(), loss, state=path, epochs=2, clip=1.0, progress=False)
    with pytest.raises(TrainError, match="other parameters"):
        train(nn.Linear(64, 10), noise(), loss, state=path, progress=False)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(TrainError, match=r"can't read the training state.*truncated"):
        train(net(), noise(), loss, state=path, progress=False)
    with pytest.raises(TrainError, match="no folder"):
        train(net(), noise(), loss, state=tmp_path / "absent" / "state", progress=False)


trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 99), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=40, deadline=None)
@given(tree=trees)
def test_states_go_there_and_back(tree: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("state") / "state"
    tensors = [torch.arange(6).reshape(2, 3), torch.tensor(1.5, dtype=torch.bfloat16), np.arange(3, dtype=np.uint32)]
    write_state(path, {"tree": tree, "tensors": tensors})
    found = read_state(path)
    assert repr(found["tree"]) == repr(tree)
    assert torch.equal(found["tensors"][0], tensors[0])
    assert found["tensors"][1] == tensors[1]
    assert found["tensors"][2].tolist() == [0, 1, 2]
    assert b"pickle" not in path.read_bytes()


def test_states_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="can't hold set"):
        write_state(tmp_path / "state", {"a": {1, 2}})
    with pytest.raises(TrainError, match="can't hold float nan"):
        write_state(tmp_path / "state", {"a": float("nan")})
    with pytest.raises(TrainError, match="keys that are texts or integers"):
        write_state(tmp_path / "state", {"a": {1.5: 2}})
    assert list(tmp_path.iterdir()) == []
    torch.save({"a": 1}, tmp_path / "pickle")
    with pytest.raises(TrainError, match="zip archive"):
        read_state(tmp_path / "pickle")


def test_early_stopping_keeps_the_best_weights() -> None:
    values = iter([1.0, 3.0, 2.0, 2.5, 9.0])
    kept: list[Tensor] = []

    def evaluate(model: nn.Module) -> float:
        assert not model.training
        assert not torch.is_grad_enabled()
        kept.append(model[8].weight.clone())  # type: ignore[index]
        return next(values)

    model = net()
    result = train(model, noise(), loss, epochs=5, evaluate=evaluate, patience=2, progress=False)
    assert (result.values, result.best, result.stopped) == ([1.0, 3.0, 2.0, 2.5], 1, True)
    assert torch.equal(model[8].weight, kept[1])
    with pytest.raises(TrainError, match="gave nan after epoch 1"):
        train(net(), noise(), loss, evaluate=lambda model: float("nan"), progress=False)


def test_an_unfinished_pruning_is_never_the_best() -> None:
    model, values = net(), iter([9.0, 1.0, 0.5])
    pruner = Pruner(model, sparsity=0.5, schedule="linear", steps=4)
    settings: dict[str, Any] = {"epochs": 3, "companions": [pruner], "evaluate": lambda model: next(values)}
    assert train(model, noise(), loss, progress=False, **settings).best == 1
    assert pruner.finish().sparsity == pytest.approx(0.5, abs=0.01)


def test_rates_reach_what_they_say() -> None:
    seen: dict[str, list[float]] = {}
    for rate in RATES:
        model, noted = net(), seen.setdefault(rate, [])

        class Noted(torch.optim.SGD):
            def step(self, *args: Any, noted: list[float] = noted) -> None:
                noted.append(self.param_groups[0]["lr"])

        train(
            model,
            noise(4),
            loss,
            epochs=2,
            rate=rate,
            warmup=0.25,
            optimizer=lambda p: Noted(p, lr=1.0),
            progress=False,
        )
    assert seen["constant"] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1])
    assert seen["linear"] == pytest.approx([1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert seen["cosine"][2] == 1
    assert seen["cosine"][5] == pytest.approx(0.5)


def test_clipping_and_accumulation() -> None:
    """A clipped step of SGD moves the weights by the limit times the learning rate; two halves make a whole batch."""
    batch = noise(1)[0]
    halves = list(zip(batch[0].split(8), batch[1].split(8), strict=True))

    def moved(batches: list[Any], **settings: Any) -> Tensor:
        model = nn.Linear(64, 10)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        train(model, batches, loss, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), progress=False, **settings)
        return torch.cat([model.weight.detach().flatten(), model.bias.detach()])

    assert float(moved([batch], clip=0.01).norm()) == pytest.approx(0.005, rel=1e-3)
    torch.testing.assert_close(moved(halves, accumulate=2), moved([batch]))


def test_what_is_refused() -> None:
    with pytest.raises(TrainError, match="unknown learning rate schedule 'exp'; known: constant"):
        train(net(), noise(), loss, rate="exp")
    with pytest.raises(TrainError, match="warmup"):
        train(net(), noise(), loss, warmup=1.0)
    with pytest.raises(TrainError, match="nothing to train"):
        train(net().requires_grad_(False), noise(), loss)
    with pytest.raises(TrainError, match="loss became nan"):
        train(net(), noise(), lambda model, batch: loss(model, batch) * float("nan"), progress=False)
    state = random.getstate()
    train(net(), noise(), loss, seed=3, progress=False)
    assert random.getstate() == state

"""Layers compressed one by one from files, and inference by many workers: equal on every engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from scale_model import make
from torch import Tensor, nn

import tersor
from tersor import Recipe, TersorError, prune, steps
from tersor.scale import GPTQ, SVD, LayerJob, SparseGPT, gather_grams, map_over, predict, predict_dataset, solve_layers
from tersor.training import read_state

JOBS = [SVD(energy=0.9), SparseGPT(sparsity=0.5), GPTQ(bits=4)]
BATCHES = [torch.randn(64, 24, generator=torch.Generator().manual_seed(i)) for i in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(make().state_dict(), tmp_path / "model.safetensors")
    assert gather_grams(make(), BATCHES, tmp_path / "grams") == ["0.weight", "2.weight"]
    return tmp_path


def run(folder: Path, job: LayerJob, engine: str = "here", out: str = "out", **settings: Any) -> dict[str, Any]:
    found = solve_layers(
        [folder / "model.safetensors"], folder / out, job, grams=folder / "grams", engine=engine, **settings
    )
    return {layer.name: read_state(layer.path)["tensors"] | {"error": layer.error} for layer in found}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_processes_give_what_this_process_gives(job: LayerJob, folder: Path) -> None:
    one = run(folder, job)
    assert one.keys() == {"0.weight", "2.weight"}
    assert all(0 < layer["error"] < 0.7 for layer in one.values())
    if job.name != "gptq":  # one start of processes is enough for the three
        return
    other = run(folder, job, "processes", "other")
    for name, tensors in one.items():
        for key, value in tensors.items():
            torch.testing.assert_close(other[name][key], value, rtol=1e-5, atol=1e-6)


def test_sparsegpt_alone_is_that_of_the_pruner(folder: Path) -> None:
    model = make()
    prune.Pruner(model, criterion="sparsegpt", sparsity=0.5, calibration=BATCHES, include=["0"]).finish()
    (found,) = run(folder, SparseGPT(0.5), include=["0.*"]).values()
    assert torch.equal(found["weight"] == 0, model[0].weight == 0)
    torch.testing.assert_close(found["weight"], model[0].weight.detach(), rtol=1e-3, atol=1e-5)


def test_the_error_is_that_of_the_outputs(folder: Path) -> None:
    x = torch.cat(BATCHES)
    weight = make()[0].weight.detach()
    found = run(folder, SVD(energy=0.8))["0.weight"]
    difference = x @ (found["up"] @ found["down"] - weight).T
    assert found["error"] == pytest.approx(float(difference.norm() / (x @ weight.T).norm()), rel=1e-3)
    assert found["error"] <= (1 - 0.8) ** 0.5 + 1e-3


def test_what_is_solved_is_not_solved_again(folder: Path) -> None:
    run(folder, SVD())
    (folder / "out" / "0.weight.svd").unlink()
    again = solve_layers([folder / "model.safetensors"], folder / "out", SVD(), grams=folder / "grams")
    assert [layer.seconds > 0 for layer in again] == [True, False]


def test_what_is_refused(folder: Path) -> None:
    with pytest.raises(TersorError, match="needs second moments"):
        solve_layers([folder / "model.safetensors"], folder / "out", GPTQ())
    with pytest.raises(TersorError, match="no matrix that is selected"):
        run(folder, SVD(), include=["x"])
    with pytest.raises(TersorError, match="unknown engine 'spark'; known: here, processes, ray"):
        map_over(len, [], engine="spark")
    with pytest.raises(TersorError, match="at least one worker"):
        map_over(len, [], workers=0)
    with pytest.raises(TersorError, match="selects no linear layer"):
        gather_grams(nn.Sequential(nn.ReLU()), BATCHES, folder / "none")


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("predict") / "model.tersor"
    tersor.save(tersor.compress(make(), Recipe([steps.Quantize()]), force=True, progress=False).model, path)
    return path


def test_inference_here(compressed: Path) -> None:
    model = tersor.load(compressed, make())
    found: Iterator[Tensor] = predict(compressed, BATCHES, make)
    for output, batch in zip(found, BATCHES, strict=True):
        assert torch.equal(output, model(batch))


def test_on_a_local_ray_with_two_workers(folder: Path, compressed: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed here: pip install 'tersor[ray]'")
    expected = {job.name: run(folder, job) for job in JOBS[1:]}
    paths = str(Path(__file__).parent)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=100 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}},
    )
    try:
        for job in JOBS[1:]:
            for name, tensors in run(folder, job, "ray", f"ray-{job.name}").items():
                for key, value in tensors.items():
                    torch.testing.assert_close(value, expected[job.name][name][key], rtol=1e-5, atol=1e-6)
        model = tersor.load(compressed, make())
        outputs = list(predict(compressed, BATCHES, make, engine="ray"))
        assert all(torch.equal(one, model(batch)) for one, batch in zip(outputs, BATCHES, strict=True))
        pytest.importorskip("pyarrow", reason="Ray Data needs pyarrow")
        data = ray.data.from_numpy(torch.cat(BATCHES).numpy())
        rows = predict_dataset(data, compressed, make, column="data", batch_size=48).take_all()
        assert len(rows) == 192
        for row in rows[:8]:
            single = model(torch.tensor(row["data"])[None])[0]
            torch.testing.assert_close(torch.as_tensor(row["y"]), single, rtol=1e-5, atol=1e-6)
    finally:
        ray.shutdown()

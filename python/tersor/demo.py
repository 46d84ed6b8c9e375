"""The main job on a real model: MiniLM-L6 from float to int8, measured, saved and loaded again in a new process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor import demo_data, host, text
from tersor.benchmark import Laps, interleave, torch_threads
from tersor.checkpoint import save
from tersor.compress import compress
from tersor.demo_proof import digest, digest_in_new_process
from tersor.demo_result import DemoResult, Fidelity, Latency
from tersor.energy import EnergyMeter
from tersor.errors import TersorError
from tersor.progress import track, working
from tersor.recipe import Recipe
from tersor.steps import Quantize
from tersor.torch_int8 import dynamic_int8, engines

WORKLOADS = ((1, 16), (1, 128), (8, 128))
"""(batch, tokens) of the latency figures."""

_SECONDS_PER_WORKLOAD = 8.0
"""No further round is begun after that, once there are five."""


def run_demo(
    out: Path,
    *,
    threads: int | None = None,
    quick: bool = False,
    progress: bool = True,
    show: Callable[[str], None] = lambda _: None,
    width: int = 100,
    color: bool = False,
) -> DemoResult:
    """Compress MiniLM-L6, compare it with the float model and torch's int8, save it, prove that the file is enough.

    Args:
        out: folder for the model and the reports; it is made.
        threads: torch threads; None leaves what torch chose.
        quick: fewer rounds and texts, and torch's first engine only.
        progress: progress bars on a terminal.
        show: told each part of the result as soon as it is there, as text.
        width, color: of that text.

    Raises:
        TersorError: the model's package is not installed, or a part of the demo failed.
    """
    started = time.perf_counter()
    folder = demo_data.model_folder()
    with torch_threads(threads):
        with working("loading the float model", shown=progress):
            model, tokenizer = demo_data.load_model(folder)
        out.mkdir(parents=True, exist_ok=True)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        facts = host.describe_host() | {"threads": str(torch.get_num_threads())}
        show(_opening(parameters, facts))
        result = _compress(model, tokenizer, progress)
        show(result.report.table(width, color))
        file = out / "minilm-l6-int8.tersor"
        save(result.model, file)
        demo = DemoResult(
            parameters=parameters,
            host=facts,
            report=result.report,
            float_bytes=(folder / "model.safetensors").stat().st_size,
            file_bytes=file.stat().st_size,
            files={"model": str(file), "report": str(out / "report.html"), "json": str(out / "report.json")},
        )
        show(demo.size_text())
        contestants, engine = _contestants(model, result.model, quick)
        demo = dataclasses.replace(demo, engine=engine, latencies=_latencies(contestants, quick, progress))
        show(demo.latency_table(width, color))
        demo = dataclasses.replace(demo, fidelity=_fidelity(contestants, tokenizer, quick, progress))
        show(demo.fidelity_table(width, color))
        demo = dataclasses.replace(demo, bit_equal=_prove(result.model, file, progress))
    demo = dataclasses.replace(demo, seconds=time.perf_counter() - started)
    _write_reports(demo, out)
    show(demo.closing())
    return demo


def _opening(parameters: int, facts: Mapping[str, str]) -> str:
    return (
        f"MiniLM-L6 ({parameters / 1e6:.1f} million parameters), float32 to int8\n"
        f"{facts['cpu']}, {facts['threads']} threads, {facts['isa']}, torch {facts['torch']}\n"
    )


def _compress(model: nn.Module, tokenizer: Any, progress: bool) -> Any:
    example = demo_data.tokens(tokenizer, list(demo_data.SENTENCES))
    others = [demo_data.random_batch(*workload) for workload in WORKLOADS]
    return compress(model, Recipe([Quantize()]), example, other_inputs=others, progress=progress)


def _contestants(model: nn.Module, compressed: nn.Module, quick: bool) -> tuple[dict[str, nn.Module], str | None]:
    """Float, torch's int8 on its fastest engine here (None where torch has none), tersor."""
    rivals = {name: dynamic_int8(model, name) for name in engines()[: 1 if quick else None]}
    best = None
    if rivals:
        batch = demo_data.random_batch(1, 128)
        with torch.inference_mode():
            laps = interleave(_bound(rivals, batch), rounds=3, warmup=1)
        best = min(rivals, key=lambda name: laps[name].median)
    contestants: dict[str, nn.Module] = {"float": model}
    if best is not None:
        contestants["torch int8"] = rivals[best]
    contestants["tersor int8"] = compressed
    return contestants, best


def _bound(models: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> dict[str, Callable[[], Any]]:
    return {name: partial(model, **batch) for name, model in models.items()}


def _latencies(contestants: Mapping[str, nn.Module], quick: bool, progress: bool) -> tuple[Latency, ...]:
    rounds, found = (5 if quick else 15), []
    turns = _Turns(len(WORKLOADS) * rounds, "measuring latency", progress)
    with turns, torch.inference_mode():
        for batch, length in WORKLOADS:
            runs = _bound(contestants, demo_data.random_batch(batch, length))
            meter = EnergyMeter()
            laps = interleave(
                runs,
                rounds=rounds,
                warmup=2,
                turn_seconds=0.02,
                seconds=_SECONDS_PER_WORKLOAD,
                meter=meter,
                progress=turns.advance,
            )
            found.append(_latency(batch, length, laps))
    return tuple(found)


def _latency(batch: int, length: int, laps: Mapping[str, Laps]) -> Latency:
    milliseconds = {name: lap.median * 1e3 for name, lap in laps.items()}
    joules = {name: None if lap.joules is None else lap.joules / lap.calls for name, lap in laps.items()}
    return Latency(batch, length, milliseconds, joules)


class _Turns:
    """A progress bar that is moved from inside a loop of somebody else's."""

    def __init__(self, total: int, text: str, shown: bool) -> None:
        self._steps = iter(track(range(total), text, shown=shown))

    def __enter__(self) -> None:
        next(self._steps, None)

    def advance(self) -> None:
        """One step done."""
        next(self._steps, None)

    def __exit__(self, *_: object) -> None:
        self._steps.close()  # type: ignore[attr-defined]


def _fidelity(contestants: Mapping[str, nn.Module], tokenizer: Any, quick: bool, progress: bool) -> Fidelity:
    texts = demo_data.find_texts()
    count = min(len(texts.texts), 12) if quick else len(texts.texts)
    embeddings: dict[str, list[Tensor]] = {name: [] for name in contestants}
    with torch_threads(1), torch.inference_mode():
        for line in track(texts.texts[:count], "comparing embeddings", shown=progress):
            batch = demo_data.tokens(tokenizer, [line])
            for name, model in contestants.items():
                embeddings[name].append(demo_data.embed(model, batch))
    whole = {name: torch.cat(parts) for name, parts in embeddings.items()}  # [texts, 384] each
    cosines = {name: (part * whole["float"]).sum(1) for name, part in whole.items()}
    ratings = None if texts.ratings is None else texts.ratings[:count, :count]
    return Fidelity(
        texts=texts.name if count == len(texts.texts) else f"{count} of {texts.name}",
        mean_cosine={name: float(value.mean()) for name, value in cosines.items()},
        min_cosine={name: float(value.min()) for name, value in cosines.items()},
        pearson=None if ratings is None else {n: demo_data.pearson(part, ratings) for n, part in whole.items()},
    )


def _prove(model: nn.Module, file: Path, progress: bool) -> bool:
    batches = [demo_data.random_batch(*workload) for workload in WORKLOADS]
    with working("loading the file in a new process", shown=progress):
        expected, got = digest(model, batches), digest_in_new_process(file, batches)
    if got != expected:
        raise TersorError(f"a new process loaded {file}, but its outputs differ: {got[:16]} instead of {expected[:16]}")
    return True


def _write_reports(demo: DemoResult, out: Path) -> None:
    text.write(out / "report.html", demo.report.to_html())
    demo.to_json(out / "report.json")

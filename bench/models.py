"""Transformers end to end: tersor in int8, float, torch's dynamic int8, ONNX Runtime and OpenVINO int8, taking turns.

python bench/models.py --threads 2 --json out.json
python bench/models.py --model bert-base --threads 2
python bench/models.py --mixed
python bench/models.py --sparsity 0.8

Models other than MiniLM have random weights: their times are those of trained ones, and cosines are against their own
float outputs. `--mixed`: one batch of 32 sequences padded to 128 tokens, with fewer and fewer real ones. `--sparsity`:
all engines get weights of which that part was set to 0 in 1x4 blocks, by magnitude and without recovery.

Every turn begins after a rest and with a call that is not timed, so that each engine is timed as if it were alone:
threads of ONNX Runtime spin for 50 ms after its last call, and take half of two cores from whoever comes next.
`--rest 0` leaves that out.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

TEXT_SHAPES = ((1, 16), (1, 128), (8, 128), (32, 128))  # batch, tokens
IMAGE_SHAPES = ((1, 197), (8, 197))
MIXED = (1.0, 0.75, 0.5, 0.25)  # real tokens of a batch
CALIBRATION = 60


@dataclasses.dataclass(frozen=True)
class Subject:
    """A float model and what it is given."""

    model: Any
    batch: Callable[[int, int], dict[str, Any]]
    samples: list[dict[str, Any]]
    shapes: tuple[tuple[int, int], ...]
    sparsity: float = 0.0


def prune(subject: Subject, sparsity: float) -> Subject:
    """The subject with that part of the weights of its linear layers set to 0, in place."""
    from tersor.prune import Pruner

    Pruner(subject.model, criterion="magnitude", pattern="1x4", sparsity=sparsity).finish(force=True)
    return dataclasses.replace(subject, sparsity=sparsity)


def load(name: str) -> Subject:
    """MiniLM with its weights and real texts, or another architecture with random weights and inputs."""
    import torch
    import transformers

    from tersor import demo_data

    if name == "minilm":
        model, tokenizer = demo_data.load_model(demo_data.model_folder())
        texts = demo_data.find_texts().texts
        samples = [dict(demo_data.tokens(tokenizer, [text])) for text in texts]
        return Subject(model, demo_data.random_batch, samples, TEXT_SHAPES)
    torch.manual_seed(0)
    made = {"bert-base": "Bert", "distilbert": "DistilBert", "vit-base": "ViT"}[name]
    model = getattr(transformers, f"{made}Model")(getattr(transformers, f"{made}Config")()).eval()
    if name == "vit-base":
        generator = torch.Generator().manual_seed(0)

        def batch(count: int, _: int) -> dict[str, Any]:
            return {"pixel_values": torch.randn((count, 3, 224, 224), generator=generator)}

        return Subject(model, batch, [batch(1, 197) for _ in range(8)], IMAGE_SHAPES)
    keys = (
        ("input_ids", "attention_mask") if name == "distilbert" else ("input_ids", "attention_mask", "token_type_ids")
    )

    def words(count: int, tokens: int) -> dict[str, Any]:
        found = demo_data.random_batch(count, tokens)
        return {key: found[key] for key in keys}

    return Subject(model, words, [words(1, 8 * length) for length in range(4, 12)], TEXT_SHAPES)


def contestants(subject: Subject, threads: int, force: bool, rivals: bool, folder: Path) -> tuple[dict[str, Any], Any]:
    """Engines by name, each a function of a batch that gives the last hidden state; and tersor's report."""
    import tersor
    from tersor.torch_int8 import dynamic_int8, engines

    def hidden(model: Any) -> Callable[[Mapping[str, Any]], Any]:
        return lambda inputs: model(**inputs).last_hidden_state

    others = [subject.batch(*shape) for shape in subject.shapes[:3]]

    def compressed(*steps: Any) -> Any:
        recipe = tersor.Recipe([*steps])
        return tersor.compress(subject.model, recipe, subject.samples[0], other_inputs=others, force=force)

    quantize = tersor.steps.Quantize()
    if subject.sparsity > 0:
        result = compressed(tersor.steps.Prune(pattern="1x4", sparsity=subject.sparsity), quantize)
        beside = {"tersor dense": hidden(compressed(quantize).model)}
    else:
        result = compressed(quantize)
        beside = {"tersor layers": hidden(compressed(tersor.steps.Quantize(blocks=False)).model)}
    found = {"torch": hidden(subject.model), "tersor": hidden(result.model), **beside}
    found |= {f"torch-int8/{engine}": hidden(dynamic_int8(subject.model, engine)) for engine in engines()[:1]}
    if rivals:
        import rivals as engines_of

        eager = copy.deepcopy(subject.model)
        eager.set_attn_implementation("eager")  # what ONNX Runtime's optimiser knows
        plain = engines_of.export(eager, subject.samples[0], folder / "model.onnx")
        found["onnxruntime int8"] = engines_of.onnxruntime_int8(subject.model, plain, threads)
        found["openvino int8"] = engines_of.openvino_int8(plain, subject.samples[:CALIBRATION], threads)
    return found, result.report


def cosines(subject: Subject, found: Mapping[str, Any]) -> dict[str, float]:
    """The mean cosine of each engine's embeddings (means over tokens) to those of the float model."""
    import torch

    def embed(engine: Any, sample: Mapping[str, Any]) -> Any:
        output = engine(sample).float()
        mask = sample.get("attention_mask", torch.ones(output.shape[:2]))[..., None].float()
        return torch.nn.functional.normalize((output * mask).sum(1) / mask.sum(1), dim=1)

    sums = dict.fromkeys(found, 0.0)
    for sample in subject.samples:
        expected = embed(found["torch"], sample).clone()
        for name, engine in found.items():
            sums[name] += float((embed(engine, sample) * expected).sum())
    return {name: value / len(subject.samples) for name, value in sums.items()}


def mixed_batch(subject: Subject, share: float) -> dict[str, Any]:
    """32 sequences padded to 128 tokens; all but the first are shorter, so that `share` of all tokens are real."""
    import torch

    inputs = subject.batch(32, 128)
    lengths = torch.full((32,), round((32 * 128 * share - 128) / 31) if share < 1 else 128)
    lengths[0] = 128
    inputs["attention_mask"] = (torch.arange(128)[None] < lengths[:, None]).long()
    return inputs


def measure(
    name: str,
    threads: int,
    rounds: int,
    force: bool,
    rivals: bool,
    mixed: bool,
    sparsity: float,
    rest: float,
    work: Path,
    shapes: list[str],
) -> dict[str, Any]:
    """Milliseconds per (batch, tokens) and engine, and the mean cosine of each engine's embeddings to float."""
    import torch

    from tersor.benchmark import interleave
    from tersor.host import describe_host

    torch.set_num_threads(threads)
    subject = load(name) if sparsity == 0 else prune(load(name), sparsity)
    folder = work / (f"{name}-{sparsity:g}" if sparsity > 0 else name)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode(False), torch.no_grad():
        found, report = contestants(subject, threads, force, rivals, folder)
    rows = []
    workloads: list[tuple[str, dict[str, Any]]] = [
        (f"{batch} x {tokens}", subject.batch(batch, tokens))
        for batch, tokens in subject.shapes
        if not shapes or f"{batch}x{tokens}" in shapes
    ]
    if mixed:
        workloads = [(f"32 x 128, {share:.0%} real", mixed_batch(subject, share)) for share in MIXED]
    with torch.inference_mode():
        cosine = cosines(subject, found)
        for label, inputs in track(workloads, description="shapes", console=Console(stderr=True)):
            runs = {engine: functools.partial(one, inputs) for engine, one in found.items()}
            laps = interleave(runs, rounds=rounds, warmup=1, turn_seconds=0.05, rest=rest)
            rows.append({"workload": label, "ms": {engine: lap.median * 1e3 for engine, lap in laps.items()}})
    blocks = sum(row.layer == "EncoderBlock" for row in report.rows)
    return {
        "command": f"python bench/models.py {' '.join(_without_paths(sys.argv[1:]))}",
        "model": name,
        "threads": threads,
        "rest": rest,
        "host": describe_host(),
        "cosine": cosine,
        "swapped": f"{report.totals.swapped} layers swapped, {blocks} encoder blocks",
        "rows": rows,
    }


def _without_paths(arguments: list[str]) -> list[str]:
    places = {i + offset for i, word in enumerate(arguments) if word in ("--work", "--json") for offset in (0, 1)}
    return [word for i, word in enumerate(arguments) if i not in places]


def show(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['model']}, {result['threads']} thread(s), median milliseconds")
    engines = list(result["cosine"])
    for heading in ("batch x tokens", *engines, "best rival / tersor"):
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        best = min(ms for name, ms in row["ms"].items() if not name.startswith("tersor"))
        times = [f"{row['ms'][name]:.2f}" for name in engines]
        table.add_row(row["workload"], *times, f"{best / row['ms']['tersor']:.2f}x")
    table.add_row("cosine to float", *(f"{result['cosine'][name]:.4f}" for name in engines), "")
    console = Console(width=max(100, 18 * (len(engines) + 2)))
    console.print(table)
    console.print(f"{result['swapped']}; host: {result['host']}")


def main(
    model: Annotated[str, typer.Option(help="minilm, bert-base, distilbert or vit-base")] = "minilm",
    threads: Annotated[int, typer.Option(min=1)] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 11,
    force: Annotated[bool, typer.Option(help="swap every layer and block, whatever the tuner says")] = False,
    rivals: Annotated[bool, typer.Option(help="ONNX Runtime and OpenVINO, where they are installed")] = True,
    mixed: Annotated[bool, typer.Option(help="batches padded to their longest")] = False,
    sparsity: Annotated[float, typer.Option(min=0, max=0.99, help="part of the weights to set to 0 first")] = 0.0,
    rest: Annotated[float, typer.Option(min=0, help="seconds before each turn")] = 0.1,
    shape: Annotated[list[str] | None, typer.Option(help="only these, as BATCHxTOKENS; may be given often")] = None,
    work: Annotated[Path | None, typer.Option(help="keep the rivals' files here")] = None,
    out: Annotated[Path | None, typer.Option("--json", help="write the result here")] = None,
) -> None:
    """Times a transformer in float and in the int8 of several engines on this host."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as folder:
        kept = work or Path(folder)
        result = measure(model, threads, rounds, force, rivals, mixed, sparsity, rest, kept, shape or [])
    show(result)
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)

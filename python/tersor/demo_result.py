"""What the demo found: figures, and how they are shown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tersor import text
from tersor.report import Report
from tersor.report.wording import size

SCHEMA = "tersor.demo/1"

THREE_LINES = """\
result = tersor.compress(model, tersor.Recipe([tersor.steps.Quantize()]), batch)
tersor.save(result.model, "model.tersor")
model = tersor.load("model.tersor", model=make_float_model())"""


@dataclasses.dataclass(frozen=True)
class Latency:
    """One workload.

    Attributes:
        batch, tokens: its size.
        ms: median milliseconds per call by contestant, interleaved.
        joules: energy of the CPU packages per call; None where the host can't tell.
    """

    batch: int
    tokens: int
    ms: dict[str, float]
    joules: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """Embeddings against those of the float model.

    Attributes:
        texts: what was embedded.
        mean_cosine, min_cosine: over the texts, by contestant.
        pearson: correlation of similarities with human ratings by contestant; None without ratings.
    """

    texts: str
    mean_cosine: dict[str, float]
    min_cosine: dict[str, float]
    pearson: dict[str, float] | None


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """Everything :func:`tersor.demo.run_demo` found.

    Attributes:
        parameters: of the float model.
        host: CPU, threads, instruction set, versions.
        report: what was done to each layer.
        float_bytes, file_bytes: size of the float model's file and of the compressed one.
        files: paths of what was written.
        engine: torch's quantised engine in the comparison; None where torch has none.
        latencies: one per workload.
        fidelity: embeddings against float.
        bit_equal: a new process loaded the file and gave the same bits.
        seconds: how long everything took.
    """

    parameters: int
    host: dict[str, str]
    report: Report
    float_bytes: int
    file_bytes: int
    files: dict[str, str]
    engine: str | None = None
    latencies: tuple[Latency, ...] = ()
    fidelity: Fidelity | None = None
    bit_equal: bool = False
    seconds: float = 0.0

    def size_text(self) -> str:
        """File sizes in a line."""
        ratio = self.float_bytes / self.file_bytes
        return f"File: {size(self.float_bytes)} -> {size(self.file_bytes)} ({ratio:.2f}x smaller).\n"

    def latency_table(self, width: int = 100, color: bool = False) -> str:
        """Milliseconds and speed-ups by workload."""
        names = list(self.latencies[0].ms)
        rivals = names[:-1]
        table = text.plain_table("batch x tokens", *(f"{n} ms" for n in names), *(f"vs {n}" for n in rivals))
        for row in self.latencies:
            own = row.ms[names[-1]]
            table.add_row(
                f"{row.batch} x {row.tokens}",
                *(f"{row.ms[name]:.2f}" for name in names),
                *(f"{row.ms[name] / own:.2f}x" for name in rivals),
            )
        engine = (
            "torch has no int8 engine here" if self.engine is None else f"torch int8: dynamic, {self.engine} engine"
        )
        how = f"Latency: interleaved medians, {self.host['threads']} threads; {engine}."
        return text.render(table, how, *self._energy(), width=width, color=color)

    def _energy(self) -> Iterator[str]:
        row = self.latencies[-1]
        known = {name: value for name, value in row.joules.items() if value is not None}
        if known:
            parts = ", ".join(f"{name} {1e3 * value:.0f} mJ" for name, value in known.items())
            yield f"Energy per call at {row.batch} x {row.tokens}: {parts}."
        else:
            yield "Energy: not available on this host."

    def fidelity_table(self, width: int = 100, color: bool = False) -> str:
        """Cosines and correlations by contestant."""
        if self.fidelity is None:
            return ""
        found = self.fidelity
        heads = ["mean cosine to float", "lowest"] + (["Lee similarity, Pearson"] if found.pearson else [])
        table = text.plain_table("embeddings", *heads)
        for name, mean in found.mean_cosine.items():
            cells = [f"{mean:.5f}", f"{found.min_cosine[name]:.5f}"]
            table.add_row(name, *cells, *([f"{found.pearson[name]:.4f}"] if found.pearson else []))
        return text.render(table, f"On {found.texts}.", width=width, color=color)

    def closing(self) -> str:
        """What was written, and how to do the same elsewhere."""
        proof = "A new process loaded the file and computed the same outputs, bit for bit.\n" if self.bit_equal else ""
        files = "".join(f"  {path}\n" for path in self.files.values())
        return f"{proof}Saved, after {self.seconds:.0f} s:\n{files}\nThe same with your own model:\n\n{THREE_LINES}\n"

    def table(self, width: int = 100, color: bool = False) -> str:
        """The whole result as text of at most ``width`` columns."""
        parts = (self.report.table(width, color), self.size_text(), self.latency_table(width, color))
        return "\n".join((*parts, self.fidelity_table(width, color), self.closing()))

    def to_dict(self) -> dict[str, Any]:
        """Plain data with a ``schema`` key."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["report"] = self.report.to_dict()
        data["latencies"] = [dataclasses.asdict(row) for row in self.latencies]
        data["fidelity"] = None if self.fidelity is None else dataclasses.asdict(self.fidelity)
        return {"schema": SCHEMA, **data}

    def to_json(self, path: str | Path | None = None) -> str:
        """The result as JSON text, also written to ``path`` where one is given."""
        content = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        if path is not None:
            text.write(path, content)
        return content

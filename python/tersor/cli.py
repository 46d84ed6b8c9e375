"""The command ``tersor``. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, Protocol

import typer

from tersor.errors import TersorError

P = ParamSpec("P")

app = typer.Typer(
    name="tersor",
    help="Makes trained PyTorch models smaller and faster on the machine where they run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        "-r",
        exists=True,
        dir_okay=False,
        help="A TOML recipe; by default int8 weights, dynamic activations.",
    ),
]
DataFactory = Annotated[
    str | None,
    typer.Option(
        help="package.module:factory returning example inputs, or a dict with example_inputs, other_inputs, "
        "calibration, train, evaluate."
    ),
]
Examples = Annotated[
    list[str] | None,
    typer.Option(
        help="Example input [NAME=]SHAPE[:DTYPE], such as 8x384 or input_ids=1x128:int64; repeat it for every input."
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Torch threads; by default what torch chooses.")]


class _Result(Protocol):
    def table(self, width: int = ..., color: bool = ...) -> str: ...
    def to_json(self) -> str: ...


def main() -> None:
    """Entry point of the console script and of ``python -m tersor``."""
    app(prog_name="tersor")


def _command(function: Callable[P, None]) -> Callable[P, None]:
    """Turn errors of a command into one line and an exit code; its options ``debug`` and ``json_output`` are obeyed."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            again = "; the same command goes on from what is in --work" if kwargs.get("work") else ""
            typer.echo(f"interrupted; no half-written file was left behind{again}", err=True)
            raise typer.Exit(130) from None
        except (TersorError, OSError, ImportError, MemoryError) as error:
            if kwargs.get("debug"):
                raise
            message = str(error) or type(error).__name__
            if isinstance(error, ImportError):
                message = f"{message}; `tersor doctor` tells more"
            if kwargs.get("json_output"):
                typer.echo(json.dumps({"error": message}))
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(1) from None

    return run


def _width() -> int:
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100


def _color() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _show(result: _Result, as_json: bool) -> None:
    text = result.to_json() if as_json else result.table(_width(), _color())
    typer.echo(text, nl=False, color=True if _color() else None)


def _print_version(wanted: bool) -> None:
    if wanted:
        import tersor

        typer.echo(f"tersor {tersor.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Makes trained PyTorch models smaller and faster on the machine where they run."""


@app.command()
@_command
def compress(
    model: Annotated[
        str,
        typer.Argument(
            help="package.module:factory, a folder of a Hugging Face model, or a float model's tersor file."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", dir_okay=False, help="The file to write; not needed for --dry-run.")
    ] = None,
    recipe: RecipeFile = None,
    data: DataFactory = None,
    example: Examples = None,
    force: Annotated[bool, typer.Option("--force", help="Compress layers without asking whether it pays.")] = False,
    report: Annotated[Path | None, typer.Option(help="Also write the report, to a .html or .json file.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the steps with predicted sizes and times; change nothing.")
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Keep finished steps in this folder; the same command goes on from them."),
    ] = None,
    threads: Threads = None,
    json_output: Json = False,
    debug: Debug = False,
) -> None:
    """Compress a model and save it to a file."""
    from tersor import cli_inputs, text
    from tersor.benchmark import torch_threads
    from tersor.checkpoint import save
    from tersor.compress import compress as run
    from tersor.plan import plan
    from tersor.recipe import Recipe
    from tersor.steps import Quantize

    _check_outputs(out, report)
    if out is None and not dry_run:
        raise typer.BadParameter("say where the result goes, or use --dry-run", param_hint="--out")
    if data is not None and example:
        raise typer.BadParameter("give --data or --example, not both", param_hint="--example")
    chosen = Recipe([Quantize()]) if recipe is None else Recipe.from_toml(recipe)
    with torch_threads(threads):
        loaded = cli_inputs.load_model(model)
        arguments: dict[str, Any] = cli_inputs.load_data(data) if data is not None else {}
        if example:
            vocabulary = getattr(getattr(loaded, "config", None), "vocab_size", None)
            arguments = {"example_inputs": cli_inputs.make_example(example, vocabulary)}
        if dry_run or out is None:
            _show(plan(loaded, chosen, **arguments), json_output)
            return
        result = run(loaded, chosen, **arguments, force=force, work=work)
        save(result.model, out)
    if report is not None:
        text.write(report, result.report.to_html() if report.suffix == ".html" else result.report.to_json())
    size = out.stat().st_size
    if json_output:
        content = {"schema": "tersor.compress/1", "file": str(out), "file_bytes": size}
        typer.echo(json.dumps({**content, "report": result.report.to_dict()}, indent=2))
        return
    _show(result.report, False)
    _tell_saved(out, size, bool(arguments))


def _tell_saved(out: Path, size: int, with_inputs: bool) -> None:
    if not with_inputs:
        typer.echo("Without --example or --data, layers are judged for 1 to 256 rows and errors are not measured.")
    typer.echo(f"Saved {out} ({size / 1e6:.1f} MB). Load it with tersor.load({str(out)!r}, model=make_float_model()).")


def _check_outputs(out: Path | None, report: Path | None) -> None:
    for path, option in ((out, "--out"), (report, "--report")):
        if path is not None and not path.parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent}", param_hint=option)
    if report is not None and report.suffix not in (".html", ".json"):
        raise typer.BadParameter(f"{report} ends in neither .html nor .json", param_hint="--report")


@app.command()
@_command
def inspect(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A file of tersor.save.")],
    json_output: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a compressed file holds, without loading it."""
    from tersor.checkpoint import inspect as run

    _show(run(file), json_output)


@app.command()
@_command
def bench(
    shape: Annotated[
        list[str] | None,
        typer.Option(help="ROWSxOUTxIN, such as 128x1536x384; repeat it for more. By default eleven common shapes."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; every contestant has a turn in each.")] = 15,
    threads: Threads = None,
    json_output: Json = False,
    debug: Debug = False,
) -> None:
    """Time the int8 layer against torch on a list of shapes."""
    from tersor.shape_bench import SHAPES, bench_shapes

    shapes = [_shape(text) for text in shape] if shape else SHAPES
    _show(bench_shapes(shapes, threads=threads, rounds=rounds), json_output)


def _shape(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if match is None or "0" in match.groups():
        raise typer.BadParameter(f"{text!r} is not three positive numbers ROWSxOUTxIN", param_hint="--shape")
    return int(match[1]), int(match[2]), int(match[3])


@app.command()
@_command
def doctor(json_output: Json = False, debug: Debug = False) -> None:
    """Show what tersor finds on this host, and what is wrong."""
    from tersor.doctor import doctor as run

    result = run()
    _show(result, json_output)
    if not result.healthy:
        raise typer.Exit(1)


@app.command()
@_command
def demo(
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the file and the reports.")] = Path(
        "demo-output"
    ),
    threads: Threads = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds and texts.")] = False,
    json_output: Json = False,
    debug: Debug = False,
) -> None:
    """Compress MiniLM-L6 to int8 and measure the result."""
    from tersor.demo import run_demo

    def show(text: str) -> None:
        typer.echo(text, color=True if _color() else None)

    quiet: Callable[[str], None] = lambda _: None  # noqa: E731
    shown = quiet if json_output else show
    result = run_demo(out, threads=threads, quick=quick, show=shown, width=_width(), color=_color())
    if json_output:
        typer.echo(result.to_json(), nl=False)

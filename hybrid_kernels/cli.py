"""The command line. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fast hybrid adapters for multilingual language models, and the governed fine-tuning study around them.",
)
console = Console()
errors = Console(stderr=True)
# What a user can put right; anything else is a defect, and its traceback is wanted.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError)

ConfigArgument = Annotated[
    Path | None, typer.Argument(help="A YAML configuration; the embedded demo if left out or 'demo'.")
]
Model = Annotated[str | None, typer.Option(help="A hub name, a Transformers folder, or 'demo'.")]
Data = Annotated[str | None, typer.Option(help="A folder, a hub name such as facebook/xnli, or 'sample'.")]
Output = Annotated[str | None, typer.Option(help="The run's folder.")]
Seed = Annotated[int | None, typer.Option(help="Use this one seed.")]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.")]


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    context.obj = {"debug": debug}


@app.command()
def run(
    config: ConfigArgument = None,
    demo: Annotated[bool, typer.Option("--demo", help="Run the embedded demo.")] = False,
    model: Model = None,
    data: Data = None,
    output: Output = None,
    seed: Seed = None,
) -> None:
    """Govern, train and evaluate every method, measure the footprint, write the report.

    Stages that are done are skipped, so the same command goes on with an interrupted run.
    """
    if demo and config is not None:
        raise ValueError(f"give either --demo or a configuration, not both (configuration: {str(config)!r})")
    from hybrid_kernels.training.run import run as run_all

    run_all(_load(config, model, data, output, seed), console=console)


@app.command()
def train(
    config: ConfigArgument = None,
    model: Model = None,
    data: Data = None,
    output: Output = None,
    seed: Seed = None,
) -> None:
    """Govern, train and evaluate every method; no footprint, no report."""
    from hybrid_kernels.training.run import run as run_all

    run_all(_load(config, model, data, output, seed), footprint=False, report=False, console=console)


@app.command()
def evaluate(
    run_dir: RunFolder,
    data: Annotated[
        str | None, typer.Option(help="Evaluate on this data instead of the run's own evaluation rows.")
    ] = None,
) -> None:
    """Load the adapters of a run onto the pretrained model and evaluate them."""
    from rich.table import Table

    from hybrid_kernels.training.run import evaluate_run

    table = Table(
        "method", "accuracy", "macro F1", "NLL", "Brier", "calib. error", "parity gap", "worst language"
    )
    for entry in evaluate_run(run_dir, data, console).values():
        macro, parity = entry["evaluation"]["macro"], entry["evaluation"]["parity"]
        table.add_row(
            entry["label"],
            f"{macro['accuracy']:.1%}",
            *(f"{macro[name]:.3f}" for name in ("macro_f1", "nll", "brier", "ece")),
            f"{parity['gap']:.1%}",
            f"{parity['worst_language']} ({parity['worst_accuracy']:.1%})",
        )
    console.print(table)
    console.print(f"per language: {run_dir / 'evaluation.json'}")


@app.command()
def report(run_dir: RunFolder) -> None:
    """Write report.html and report.md from a run's results."""
    from hybrid_kernels.training.run import write_report_of

    write_report_of(run_dir, console)


@app.command()
def govern(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="A JSONL file.")],
    languages: Annotated[str, typer.Option(help="The languages wanted, such as en,de,sw.")],
    out: Annotated[Path, typer.Option(help="Folder for the result; see below.")],
    text: Annotated[str, typer.Option(help="The text fields.")] = "premise,hypothesis",
    language_field: Annotated[
        str | None,
        typer.Option(help="The field with a row's language. Without it languages are found, not checked."),
    ] = None,
) -> None:
    """Clean a JSONL file: language identification, near-duplicate removal, quality filter.

    Writes kept.jsonl, rejected.jsonl (with the reason of each decision), summary.json and malformed.jsonl.
    """
    from rich.table import Table

    from hybrid_kernels.governance import govern as govern_rows
    from hybrid_kernels.training.data import read_jsonl, write_jsonl

    rows, malformed = read_jsonl(source)
    result = govern_rows(rows, _names(languages), text_columns=_names(text), language_column=language_field)
    result.write(out)
    write_jsonl(malformed, out / "malformed.jsonl")
    table = Table("step", "reason", "rejected")
    for step, counts in result.summary["by_step"].items():
        for reason, count in counts["reasons"].items():
            table.add_row(step, reason, str(count))
    console.print(table)
    console.print(
        f"kept {result.summary['kept']} of {result.summary['rows']} rows, {len(malformed)} malformed: {out}"
    )


@app.command()
def export(
    adapter: Annotated[Path, typer.Argument(help="A folder that save_pretrained wrote, of any PEFT method.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    model: Annotated[
        str | None, typer.Option(help="The base model, a folder or hub name; else the adapter's own record.")
    ] = None,
    adapter_name: Annotated[str, typer.Option(help="Which of several adapters in the folder.")] = "default",
    merged: Annotated[bool, typer.Option("--merged", help="Write the whole model, adapter merged.")] = False,
    dtype: Annotated[
        str,
        typer.Option(
            help="What the base model is loaded in, and a merged one written in: auto, float32, bfloat16 or float16."
        ),
    ] = "auto",
) -> None:
    """Write a saved adapter so that it can be served without this package.

    The hybrid, HRA and LoRA become an ordinary LoRA, of scaling 1, that stock PEFT loads. What is no low-rank update
    (unitary rotations, OFT, BOFT, DoRA, ...) is merged: a plain Transformers model, with its tokenizer if there is one.
    """
    import hybrid_kernels

    _ = hybrid_kernels.adapters  # says which extra is missing, where one is
    from hybrid_kernels.adapters.checkpoint import export_checkpoint

    written = export_checkpoint(
        adapter, out, model=model, adapter_name=adapter_name, merged=merged, dtype=dtype
    )
    console.print(str(written), markup=False, highlight=False, soft_wrap=True)


@app.command()
def bench(
    tune: Annotated[
        bool, typer.Option("--tune", help="Search variants and tiles; see where CUDA kernels win.")
    ] = False,
    shapes: Annotated[
        str | None,
        typer.Option(help="MxKxN[,…]: rows, in_features, out_features; common shapes if left out."),
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of the factor pair, 1 to 256.")] = 32,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    device: Annotated[str, typer.Option(help="The device to measure on.")] = "cuda",
    limit: Annotated[float, typer.Option(help="Seconds after which no new shape is begun.")] = 600.0,
    output: Annotated[
        Path | None, typer.Option(help="Where the rows go; the user's cache folder if left out.")
    ] = None,
) -> None:
    """Measure on this machine. --tune finds the fastest variant and tiles of the apply stage for each shape, and where
    the CUDA kernels of the Cayley transform beat plain PyTorch.

    What it finds is used from then on by itself, on this GPU, for shapes within a factor of two. The benchmarks of
    layers, products and the Cayley transform are the scripts in benchmarks/ of the repository.
    """
    if not tune:
        raise ValueError("give --tune; everything else is measured by the scripts in benchmarks/")
    import torch

    import triton_ops

    parsed = _shapes(shapes)
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if dtype not in dtypes:
        raise ValueError(f"--dtype is {dtype!r}; it may be one of {', '.join(map(repr, dtypes))}")
    if not 1 <= rank <= 256:
        raise ValueError(f"--rank is {rank}; it must lie between 1 and 256")
    reason = triton_ops.unavailable()
    if reason is None and device.startswith("cuda") and not torch.cuda.is_available():
        reason = f"--device is {device!r}, and torch sees no GPU"
    if reason is not None:
        raise ValueError(f"there is nothing to tune here: {reason}")
    from hybrid_kernels import _extension
    from hybrid_kernels.ops import cayley_search
    from triton_ops import search, selection

    path, begin = output or selection.cache_file(), time.monotonic()
    if not device.startswith("cuda") or _extension.cuda_unavailable() is not None:
        console.print(f"the Cayley transform is left out: {_extension.cuda_unavailable() or 'not on a GPU'}")
    else:
        # A folder that cannot be written to is found out before the work.
        search.write(path, torch.device(device), ())
        rows = cayley_search.rows(torch.device(device), console.print, limit=limit)
        search.write(path, torch.device(device), rows)
    left = limit - (time.monotonic() - begin)
    search.search(
        parsed or search.SHAPES, rank, dtypes[dtype], torch.device(device), left, path, console.print
    )
    console.print(f"written to {path}", soft_wrap=True)


def _shapes(text: str | None) -> list[tuple[int, int, int]]:
    shapes = []
    for shape in _names(text or ""):
        sizes = shape.split("x")
        if len(sizes) != 3 or not all(size.isdecimal() and int(size) >= 1 for size in sizes):
            raise ValueError(f"--shapes has {shape!r}; each must be MxKxN of whole numbers from 1")
        m, k, n = map(int, sizes)
        shapes.append((m, k, n))
    return shapes


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@app.command()
def info(
    json_output: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What is installed and what would run: versions, devices, compiled extension, operators by backend."""
    import json

    import hybrid_kernels

    found = hybrid_kernels.info()
    if json_output:
        typer.echo(json.dumps(found, indent=2, default=str))
        return
    from rich.table import Table

    scalars = {name: value for name, value in found.items() if not isinstance(value, dict)}
    for title, values in [
        ("hybrid-kernels", scalars),
        *((k, v) for k, v in found.items() if isinstance(v, dict)),
    ]:
        if values:
            table = Table(title=title, title_justify="left", show_header=False)
            for name, value in values.items():
                table.add_row(str(name), _plain(value))
            console.print(table)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_plain(inner)}" for name, inner in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)


def _load(
    config: Path | None, model: str | None, data: str | None, output: str | None, seed: int | None
) -> Any:
    from hybrid_kernels.training.config import DEMO_CONFIG, RunConfig

    path = DEMO_CONFIG if config is None or str(config) == "demo" else config
    return RunConfig.load(path, model=model, data=data, output=output, seed=seed)


def main(arguments: list[str] | None = None) -> None:
    """The entry point: 2 for an error the user can put right, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(arguments)
    except SystemExit as stop:
        # Typer turns Ctrl-C into this.
        if stop.code == 130:
            errors.print("\ninterrupted; run the same command again to go on from the last checkpoint")
        raise
    except USER_ERRORS as error:
        if "--debug" in arguments:
            raise
        hint = (
            "; this command needs the study's libraries: pip install 'hybrid-kernels[study]'"
            if isinstance(error, ModuleNotFoundError) and "pip install" not in str(error)
            else ""
        )
        errors.print(f"error: {error}{hint}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)

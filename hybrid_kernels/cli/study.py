"""run, train, evaluate, report: the study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hybrid_kernels.cli import base as cli

ConfigArgument = Annotated[
    Path | None,
    typer.Argument(
        help="A YAML configuration, or an example's name; the embedded demo if left out or 'demo'."
    ),
]
Model = Annotated[str | None, typer.Option(help="A hub name, a Transformers folder, or 'demo'.")]
Data = Annotated[
    str | None,
    typer.Option(
        help="Where all rows are read from: a folder, a hub name such as facebook/xnli, or 'sample'."
    ),
]
Output = Annotated[str | None, typer.Option(help="The run's folder.")]
Seed = Annotated[int | None, typer.Option(help="Use this one seed.")]
Workers = Annotated[
    int,
    typer.Option(help="Trainings at a time, each in a process; 1 under torchrun, whose processes share one."),
]
RunFolder = Annotated[Path, typer.Argument(help="The folder of a run.")]


@cli.app.command()
def run(
    config: ConfigArgument = None,
    demo: Annotated[bool, typer.Option("--demo", help="Run the embedded demo.")] = False,
    model: Model = None,
    data: Data = None,
    output: Output = None,
    seed: Seed = None,
    workers: Workers = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Govern the rows and say what would be trained; train nothing.")
    ] = False,
    footprint: Annotated[
        bool,
        typer.Option(
            " /--no-footprint", help="Leave out time per step, memory and energy.", show_default=False
        ),
    ] = True,
) -> None:
    """Govern, train and evaluate every method, measure the footprint, write the report.

    Stages that are done are skipped, so the same command goes on with an interrupted run.
    """
    if demo and config is not None:
        raise ValueError(f"give either --demo or a configuration, not both (configuration: {str(config)!r})")
    settings = _load(config, model, data, output, seed)
    if dry_run:
        from hybrid_kernels.training.run import dry_run as plan_only

        plan_only(settings, console=cli.console)
    else:
        _run(settings, workers=workers, footprint=footprint)


@cli.app.command()
def train(
    config: ConfigArgument = None,
    model: Model = None,
    data: Data = None,
    output: Output = None,
    seed: Seed = None,
    workers: Workers = 1,
) -> None:
    """Govern, train and evaluate every method; no footprint, no report."""
    _run(_load(config, model, data, output, seed), workers=workers, footprint=False, report=False)


@cli.app.command()
def evaluate(
    run_dir: RunFolder,
    data: Annotated[
        str | None,
        typer.Option(help="Evaluate on this data's evaluation split instead of the run's own rows."),
    ] = None,
) -> None:
    """Load the adapters of a run onto the pretrained model and evaluate them."""
    from rich.table import Table

    from hybrid_kernels.training import distributed
    from hybrid_kernels.training.run import evaluate_run, load_run_config
    from hybrid_kernels.training.tasks import task_of

    task = task_of(load_run_config(run_dir))
    found = {
        name: task.columns(one["evaluation"])
        for name, one in evaluate_run(run_dir, data, cli.console).items()
    }
    distributed.stop()
    if not distributed.is_first():
        return
    table = Table("cells", *next(iter(found.values())), caption=task.caption)
    for name, columns in found.items():
        table.add_row(name, *columns.values())
    cli.console.print(table)
    cli.console.print(f"per language: {run_dir / 'evaluation.json'}")


@cli.app.command()
def report(
    run_dirs: Annotated[list[Path], typer.Argument(help="The folders of one run or several.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Where the report goes; needed for several runs, else the run's folder."),
    ] = None,
) -> None:
    """Write report.html, report.md and LaTeX tables from the results of runs."""
    from hybrid_kernels.evaluation import write_report

    if output is None and len(run_dirs) > 1:
        raise ValueError(f"--output must be given for a report of {len(run_dirs)} runs")
    cli.console.print(f"report: {write_report(run_dirs, output)}")


def _run(config: Any, **options: Any) -> None:
    """Exit code 1 where a part of the run failed."""
    from hybrid_kernels.training import distributed
    from hybrid_kernels.training.run import NoResult
    from hybrid_kernels.training.run import run as run_all

    try:
        missing = run_all(config, console=cli.console, **options)["missing"]
    except NoResult as error:
        cli.errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    distributed.stop()
    if missing:
        raise typer.Exit(1)


def _load(
    config: Path | None, model: str | None, data: str | None, output: str | None, seed: int | None
) -> Any:
    from hybrid_kernels.training.config import DEMO_CONFIG, RunConfig, example_configs

    if config is None or str(config) == "demo":
        path = DEMO_CONFIG
    elif config.is_file() or config.suffix or len(config.parts) > 1:
        path = config
    else:
        examples = example_configs()
        if config.name not in examples:
            raise FileNotFoundError(
                f"no configuration file {str(config)!r}, and no example of that name; there are: demo"
                + "".join(f", {name}" for name in examples)
            )
        path = examples[config.name]
    return RunConfig.load(path, model=model, data=data, output=output, seed=seed)

"""bench: how fast this machine runs it, beside the peers; its subcommands are in files of their own."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from hybrid_kernels.cli import base as cli

group = typer.Typer()
cli.app.add_typer(group, name="bench")


@group.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    kind: Annotated[str | None, typer.Option(help="operators, layers, models, with commas.")] = None,
    op: Annotated[str | None, typer.Option(help="Operators of hk.functional, with commas.")] = None,
    case: Annotated[
        str | None, typer.Option(help="Cases of layers or of --model: hybrid, accelerate, …; see --list.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Training step of a model by Transformers name; with --kind layers, its shapes."),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Of the model, so many layers.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences in a step of a model.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens of each sequence of a model.")] = None,
    passes: Annotated[str, typer.Option("--pass", help="forward, backward, both, with commas.")] = "both",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="The GPU, if there is one, else cpu.")] = None,
    shapes: Annotated[str | None, typer.Option(help="Sizes to measure, with commas; see --list.")] = None,
    sweep: Annotated[
        str | None, typer.Option(help="Vary tokens, width, rank, reflections or blocks instead.")
    ] = None,
    no_compile: Annotated[bool, typer.Option("--no-compile", help="Leave out torch.compile.")] = False,
    without: Annotated[str | None, typer.Option(help="Leave out sides whose names begin so.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Interleaved rounds; 25, with --quick 7.")] = None,
    seconds_each: Annotated[
        float | None, typer.Option(help="A side that takes longer sits out rounds; 2, with --quick 0.5.")
    ] = None,
    limit: Annotated[float, typer.Option(help="Seconds after which no new case is begun.")] = math.inf,
    output: Annotated[
        Path | None, typer.Option(help="The result file, added to; ./bench-MACHINE.jsonl if left out.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure anew what the file has.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Say where the time goes.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few cases and rounds: a couple of minutes.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="REV", help="Beside another commit of this repository, not beside peers."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="With --against: exit 1 if anything is slower.")
    ] = False,
    listing: Annotated[bool, typer.Option("--list", help="Name cases and sides; measure nothing.")] = False,
) -> None:
    """Measure operators, adapted layers and training steps on this machine, beside the peers that are installed.

    Without any choice of cases: the first shape of each operator, of the layers and of a small model's training step.
    All sides of a case run in turn in one run. A result file keeps one JSON line for each measurement; what it has
    already, for this machine, these versions and this commit, is not measured again.

    With --against REV the package's own sides are measured on the working tree and on that commit, which is built once
    in the user's cache folder. Slower is what is slower beyond the noise, measured between two processes of REV, and is
    so again in fresh processes.
    """
    if context.invoked_subcommand is not None:
        return
    from hybrid_kernels.benchmarking import display, machine, records, selection, session

    if against is None and check:
        raise ValueError("--check needs --against REV: the commit that nothing may be slower than")
    if against is not None and profile:
        raise ValueError("--profile cannot be combined with --against")
    options = session.Options(
        passes=tuple(dict.fromkeys(cli.names(passes))),
        # Beside another commit --quick means few cases: fewer rounds would hardly tell a change from noise.
        rounds=(7 if quick and against is None else 25) if rounds is None else rounds,
        seconds_each=(0.5 if quick and against is None else 2.0) if seconds_each is None else seconds_each,
        limit=limit,
        without=tuple(cli.names(without or "")),
        profile=profile,
    )
    arguments: dict[str, Any] = {
        "kinds": cli.names(kind or ""),
        "operators": cli.names(op or ""),
        "layers": cli.names(case or ""),
        "model": model,
        "model_layers": layers,
        "batch": batch,
        "tokens": tokens,
        "dtype": dtype,
        "device": device,
        "shapes": shapes,
        "sweep": sweep,
        "compiled": not no_compile,
        "quick": quick,
    }
    cases = selection.cases(**arguments)
    if listing:
        for one in cases:
            cli.console.print(f"{one.id}  {' | '.join(session.sides(one, options))}", soft_wrap=True)
        return
    path = output or Path(f"bench-{_machine_name(machine.machine())}.jsonl")
    # What cannot be read or written is found before the work.
    earlier = records.read(path)
    records.probe(path)
    cli.console.print(f"results go to {path}", soft_wrap=True)
    if against is not None:
        from hybrid_kernels.cli import against as other

        other.measure(against, cases, arguments, options, path, check)
        return
    with display.Live(cli.console) as live:
        outcome = session.run(
            cases,
            options,
            lambda found: records.append(path, found),
            live,
            () if fresh else earlier,
        )
    total = sum(map(len, (outcome.measured, outcome.measured_before, outcome.not_begun)))
    if outcome.measured_before:
        cli.console.print(
            f"{len(outcome.measured_before)} of {total} measured already; --fresh measures anew"
        )
    if outcome.not_begun:
        cli.console.print(
            f"{len(outcome.not_begun)} of {total} not begun, {limit:g} s have passed: "
            f"{', '.join(outcome.not_begun)}"
        )
    cli.console.print(f"{len(outcome.measured)} of {total} measured, written to {path}", soft_wrap=True)


def _machine_name(machine: dict[str, Any]) -> str:
    """Such as nvidia-h100-80gb-hbm3 or amd-epyc-2-cores."""
    name = machine["gpu"] or f"{machine['processor']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")

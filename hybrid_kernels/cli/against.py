"""bench --against: the working tree beside another commit of this repository."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from hybrid_kernels.cli import base as cli

if TYPE_CHECKING:
    from hybrid_kernels.benchmarking.against import Outcome
    from hybrid_kernels.benchmarking.session import Options
    from hybrid_kernels.cases.base import BenchmarkCase


def measure(
    name: str,
    cases: Sequence[BenchmarkCase],
    arguments: Mapping[str, Any],
    options: Options,
    path: Path,
    check: bool,
) -> None:
    """Measures, adds to the result file at ``path``, prints; with ``check``, exit 1 if anything is slower or broken.

    ``arguments`` are those that `selection.cases` made ``cases`` of.
    """
    from hybrid_kernels.benchmarking import against, processes, records, revisions, session

    revision = revisions.find(name)
    for source in revisions.newer_sources():
        cli.errors.print(
            f"warning: {source} is newer than the built extension, which is what is measured; after a change there "
            "run `python setup.py build_ext --inplace`",
            soft_wrap=True,
        )
    called = f"{revision.name} ({revision.short})" if revision.name != revision.short else revision.short
    outcomes: dict[tuple[str, str, str], Outcome] = {}
    circumstances = functools.cache(functools.partial(session.circumstances, options))

    def done(outcome: Outcome) -> None:
        outcomes[outcome.case.id, outcome.part, outcome.side] = outcome
        now = datetime.datetime.now(datetime.timezone.utc).isoformat()
        made_on = circumstances(outcome.case.device) | {"date": now}
        records.append(path, against.records(outcome, made_on, revision.short))

    try:
        with cli.console.status("") as status:

            def say(what: str) -> None:
                status.update(escape(what))

            trees = {"the working tree": revisions.ROOT, called: revisions.tree(revision, say)}
            selection = processes.Selection("benchmarking.selection", "cases", arguments)
            against.run(cases, selection, trees, options, done, say)
    except KeyboardInterrupt:
        cli.errors.print("\ninterrupted; beside another commit the next run begins anew")
        raise cli.Interrupted from None
    finally:  # after Ctrl-C, or where the disk is full, what there is
        if outcomes:
            _print(outcomes.values(), called)
    cli.console.print(f"{len(outcomes)} measured, written to {path}", soft_wrap=True)
    if check:
        _check(outcomes.values(), called)


def _check(outcomes: Iterable[Outcome], called: str) -> None:
    if not any(outcome.first for outcome in outcomes):
        raise ValueError(f"nothing could be compared with {called}, so --check can say nothing")
    worse = [outcome for outcome in outcomes if outcome.change in ("slower", "broken")]
    for outcome in worse:
        what = f"{outcome.case.id} {outcome.part}, {outcome.side}"
        ratio = outcome.second or outcome.first
        if outcome.change == "broken" or ratio is None:
            said = f"broken: {what}: runs at {called} only"
        else:
            said = (
                f"slower: {what}: {ratio.median:.3f} times as long as at {called}, noise {outcome.noise:.3f}"
            )
        cli.errors.print(said, markup=False, highlight=False, soft_wrap=True)
    if worse:
        raise typer.Exit(1)
    cli.console.print(f"nothing is slower than at {called}", soft_wrap=True)


def _print(outcomes: Iterable[Outcome], called: str) -> None:
    table = Table(title=f"times as long as at {called}, 1 is the same", title_justify="left", box=None)
    table.add_column("", overflow="fold")
    for column in ("ratio", "interval", "noise"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    failures = []
    compared = [(outcome.second or outcome.first, outcome) for outcome in outcomes]
    for ratio, outcome in sorted(compared, key=lambda pair: -pair[0].median if pair[0] else 0.0):
        what = f"{outcome.case.id} {outcome.part}, {outcome.side}"
        # The two processes of the other commit fail alike.
        failures += [f"  {what}: {reason}" for reason in dict.fromkeys(outcome.failed.values())]
        if ratio is not None:
            low, high = ratio.interval
            change = outcome.change or ("once only, not again" if outcome.second else "")
            if outcome.suspected and outcome.second is None:
                change = "perhaps: not measured again"
            cells = (f"{ratio.median:.3f}", f"{low:.3f}–{high:.3f}", f"{outcome.noise:.3f}", change)
            style = {"slower": "red", "faster": "green"}.get(change, "")
            table.add_row(escape(what), *cells, style=style)
    if table.row_count:
        cli.console.print(table)
    for line in failures:
        cli.console.print(line, markup=False, highlight=False, soft_wrap=True, style="dim")

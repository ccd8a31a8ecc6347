"""govern, govern-check, govern-policy: cleaning of data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hybrid_kernels.cli import base as cli


@cli.app.command()
def govern(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Files (JSONL, CSV, TSV, Parquet, text; compressed), folders, globs, hub:NAME[:SPLIT].",
        ),
    ],
    languages: Annotated[str, typer.Option(help="The languages wanted, such as en,de,sw.")],
    out: Annotated[Path, typer.Option(help="Folder for the result; see above.")],
    text: Annotated[str, typer.Option(help="The text column, or the two.")] = "premise,hypothesis",
    language_column: Annotated[
        str | None,
        typer.Option(
            help="The column with a row's language, or two, one for each text. Without it, or --expected, languages "
            "are found, not checked."
        ),
    ] = None,
    expected: Annotated[
        str | None,
        typer.Option(help="The language of every text, or two, one for each text column, such as en,de."),
    ] = None,
    translation: Annotated[
        bool, typer.Option("--translation", help="The two texts are translations of each other.")
    ] = False,
    id_column: Annotated[str | None, typer.Option(help="The column that names a row.")] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="A YAML file as govern-policy prints it; what it leaves out has its default."),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.FIELD=VALUE", help="Change one field of the policy; may be repeated."
        ),
    ] = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option(help="An input with evaluation rows, copies of which are removed; may be repeated."),
    ] = None,
    encoding: Annotated[str, typer.Option(help="Of all files but Parquet.")] = "utf-8",
    engine: Annotated[str, typer.Option(help="'local': worker processes here; 'ray': Ray Data.")] = "local",
    workers: Annotated[int | None, typer.Option(help="Tasks at once; by default one for each core.")] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; without it Ray runs on this machine.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the hash functions; takes the policy's place.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write summary, report and policy alone, into OUT/dry-run.")
    ] = False,
) -> None:
    """Clean data: languages, duplicates, leakage of evaluation rows, quality, personal data; every rejection explained.

    OUT receives kept/ (each input's kept rows byte for byte), rejected.jsonl (with every reason), verdicts.parquet (a
    row for each row read), summary.json, report.html, policy.yaml and manifest.json. The same command goes on with an
    interrupted run. OUT/work holds what it goes on from, the texts too, and may be deleted afterwards.
    """
    from hybrid_kernels.governance.api import govern_files

    summary = govern_files(
        inputs,
        cli.names(languages),
        out,
        text_columns=cli.names(text),
        language_column=None if language_column is None else cli.names(language_column),
        expected=None if expected is None else cli.names(expected),
        translation=translation,
        id_column=id_column,
        policy=_policy(policy, change or [], seed),
        evaluation=evaluation or [],
        encoding=encoding,
        engine=engine,  # type: ignore[arg-type]
        workers=workers,
        ray_address=ray_address,
        dry_run=dry_run,
        progress=cli.errors,
    )
    _show(summary, out, dry_run)


@cli.app.command("govern-check")
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a result.")],
) -> None:
    """Check that a result of govern is whole and unchanged, and its inputs are those it was made of.

    Prints the command that makes it again. Exits with 1 if something is wrong.
    """
    from hybrid_kernels.governance import manifest

    audit = manifest.check(folder)
    lines = [f"wrong: {problem}" for problem in audit.problems] + [f"note: {note}" for note in audit.notes]
    lines.append(f"made again by: {manifest.command(audit.manifest, str(folder))}")
    if audit.passed:
        counts, result = audit.manifest["counts"], audit.manifest["result_id"][:12]
        kept = f"{counts['kept']:,} of {counts['rows']:,} rows kept"
        lines.append(f"{folder} is as it was written: {kept}, result {result}")
    cli.console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if not audit.passed:
        raise typer.Exit(1)


@cli.app.command("govern-policy")
def policy() -> None:
    """Print the default policy as YAML, with what each field means."""
    from hybrid_kernels.governance import policy_file

    print(policy_file.default_yaml(), end="")


def _policy(path: Path | None, changes: list[str], seed: int | None) -> Any:
    from hybrid_kernels.governance.policy import GovernancePolicy
    from hybrid_kernels.governance.policy_file import load_policy, policy_of, value_of

    loaded = GovernancePolicy() if path is None else load_policy(path)
    if seed is not None:
        changes = [*changes, f"seed={seed}"]
    if not changes:
        return loaded
    values = loaded.model_dump(mode="json")
    for change in changes:
        name, equals, value = change.partition("=")
        *sections, field = name.strip().split(".")
        if not equals:
            raise ValueError(f"--set takes SECTION.FIELD=VALUE, got {change!r}")
        place = values
        for section in sections:  # what is no section is put in too, for `policy_of` to name what was meant
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[field] = value_of(value, f"--set {change!r}")
    return policy_of(values, "--set")


def _show(summary: Mapping[str, Any], out: Path, dry_run: bool) -> None:
    from rich.table import Table

    print_ = cli.console.print
    reasons = Table("step", "reason", "rejected rows", "rows it alone rejects")
    for step, counts in summary["by_step"].items():
        for reason, count in counts["reasons"].items():
            reasons.add_row(step, reason, f"{count:,}", f"{counts['alone'].get(reason, 0):,}")
    for step, flags in summary["flags"].items():
        for reason, count in flags.items():
            reasons.add_row(step, f"{reason} (kept)", f"{count:,}", "")
    print_(reasons)
    languages = Table("language", "rows", "kept", "rejected")
    for name, counts in summary["by_language"].items():
        languages.add_row(name, *(f"{counts[key]:,}" for key in ("rows", "kept", "rejected")))
    print_(languages)
    stages = Table("stage", "seconds", "rows/s")
    for name, stage in summary["stages"].items():
        rate = f"{stage['rows'] / stage['seconds']:,.0f}" if stage["rows"] else "done before"
        stages.add_row(name, f"{stage['seconds']:.1f}", rate)
    print_(stages)
    ids = summary["duplicate_ids"]
    if ids and ids["ids"]:
        first = ", ".join(map(repr, ids["first"])) + (", …" if ids["ids"] > len(ids["first"]) else "")
        text = f"ids that name more than one row: {ids['ids']:,}, such as {first}"
        print_(text, markup=False, highlight=False, soft_wrap=True)
    print_(f"kept {summary['kept']:,} of {summary['rows']:,} rows")
    if dry_run:
        where = f"dry run, no rows written; see {out / 'dry-run' / 'report.html'}"
    else:
        where = f"{out / 'kept'}, {out / 'rejected.jsonl'}; why: {out / 'report.html'}"
    print_(where, markup=False, highlight=False, soft_wrap=True)

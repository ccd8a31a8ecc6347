"""info: what is installed and what would run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hybrid_kernels.cli import base as cli


@cli.app.command()
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
            cli.console.print(table)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_plain(inner)}" for name, inner in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, (list, tuple)) else str(value)

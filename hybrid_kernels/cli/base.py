"""The application that the commands register with, and what they print on."""

from __future__ import annotations

from typing import Annotated

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


class Interrupted(SystemExit):
    """Ctrl-C, of which a command has said itself what became of the work."""

    def __init__(self) -> None:
        super().__init__(130)


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    context.obj = {"debug": debug}


def names(text: str) -> list[str]:
    """The parts of a comma-separated text."""
    return [name.strip() for name in text.split(",") if name.strip()]

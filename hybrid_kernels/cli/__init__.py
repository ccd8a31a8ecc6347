"""The command line, a file for each group of commands. What is heavy is imported inside the command that needs it."""

from __future__ import annotations

import sys

from hybrid_kernels.cli import (
    adapters,
    base,
    bench,
    compare,
    govern,
    information,
    plot,
    study,
    tune,
    validate,
)

__all__ = [
    "adapters",
    "base",
    "bench",
    "compare",
    "govern",
    "information",
    "main",
    "plot",
    "study",
    "tune",
    "validate",
]


def main(arguments: list[str] | None = None) -> None:
    """The entry point: 2 for an error the user can put right, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        base.app(arguments)
    except SystemExit as stop:
        # Typer turns Ctrl-C into this.
        if stop.code == 130 and not isinstance(stop, base.Interrupted):
            base.errors.print("\ninterrupted; run the same command again to go on from what is there")
        raise
    except base.USER_ERRORS as error:
        if "--debug" in arguments:
            raise
        hint = (
            "; this command needs the study's libraries: pip install 'hybrid-kernels[study]'"
            if isinstance(error, ModuleNotFoundError) and "pip install" not in str(error)
            else ""
        )
        base.errors.print(f"error: {error}{hint}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)

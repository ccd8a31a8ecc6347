"""export: a saved adapter for those who do not have this package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybrid_kernels.cli import base as cli


@cli.app.command()
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
    cli.console.print(str(written), markup=False, highlight=False, soft_wrap=True)

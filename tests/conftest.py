"""Triton's interpreter stands in for a GPU. It has to be chosen before triton is first imported."""

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests that run beside each other, on tensors so small that threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs the command line in this process: (exit code, stdout, stderr)."""
    from rich.console import Console

    from hybrid_kernels import cli

    # Rich keeps the streams it was made with; these are made anew so that they are the captured ones.
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(cli.base, "console", Console(width=200))
        monkeypatch.setattr(cli.base, "errors", Console(stderr=True, width=200))
        with pytest.raises(SystemExit) as caught:
            cli.main(list(arguments))
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call

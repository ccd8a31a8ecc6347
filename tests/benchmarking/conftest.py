import resource

import pytest

from hybrid_kernels import cli
from hybrid_kernels.benchmarking import selection
from tests.benchmarking.support import toy_case


@pytest.fixture
def bench(capsys, monkeypatch):
    """`hybrid-kernels bench` in this process, on the toy case or those given: (exit code, stdout, stderr)."""
    from rich.console import Console

    def call(*arguments, cases=None):
        monkeypatch.setattr(cli.base, "console", Console(width=200))
        monkeypatch.setattr(cli.base, "errors", Console(stderr=True, width=200))
        monkeypatch.setattr(selection, "cases", lambda **chosen: [toy_case()] if cases is None else cases)
        with pytest.raises(SystemExit) as caught:
            cli.main(["bench", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


@pytest.fixture
def small_disk():
    """Files cannot grow beyond a limit: a write takes what fits and then fails, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)

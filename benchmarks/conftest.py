"""Which cases `pytest benchmarks` measures: the options of `hybrid-kernels bench`, which see."""

import pytest

from hybrid_kernels.benchmarking import selection, session
from hybrid_kernels.cli.base import names

LISTS = {"--kind": "kinds", "--op": "operators", "--case": "layers"}
TEXTS = {
    "--model": "model",
    "--dtype": "dtype",
    "--device": "device",
    "--shapes": "shapes",
    "--sweep": "sweep",
}
NUMBERS = {"--layers": "model_layers", "--batch": "batch", "--tokens": "tokens"}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hybrid-kernels", "cases to measure, as in hybrid-kernels bench")
    for option in (*LISTS, *TEXTS):
        group.addoption(option)
    for option in NUMBERS:
        group.addoption(option, type=int)
    group.addoption("--pass", dest="passes", default="both")
    group.addoption("--without", default="")
    group.addoption("--no-compile", action="store_true")
    group.addoption("--quick", action="store_true")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "side" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    try:
        cases = selection.cases(
            **{argument: names(option(name) or "") for name, argument in LISTS.items()},
            **{argument: option(name) for name, argument in (TEXTS | NUMBERS).items()},
            compiled=not option("--no-compile"),
            quick=option("--quick"),
        )
        options = session.Options(
            passes=tuple(names(option("passes"))), without=tuple(names(option("--without")))
        )
    except (ValueError, OSError, ImportError) as error:
        raise pytest.UsageError(str(error)) from error
    chosen = [
        (case, part, side)
        for case in cases
        for part in options.passes
        if part in case.passes
        for side in session.sides(case, options)
    ]
    metafunc.parametrize(
        ("case", "part", "side"),
        chosen,
        ids=[f"{case.id} {part} {side}" for case, part, side in chosen],
    )

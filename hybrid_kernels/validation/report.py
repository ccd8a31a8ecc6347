"""What a validation found: the summary, the lists of failures and of what was not checked, JSON and one HTML page."""

from __future__ import annotations

import json
import math
import shlex
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybrid_kernels.cases.base import shape_name
from hybrid_kernels.validation.run import DECLINED, FAILED, NOT_APPLICABLE, NOT_CHECKED, PASSED, Result


@dataclass(frozen=True)
class Row:
    """All checks of a function on a backend in a dtype: how many came to a comparison, and the worst ratios.

    ``forward`` and ``gradients`` are errors over what plain PyTorch makes in the same dtype, None without a comparison.
    ``verdict`` is "passed", "failed", "declined" or "not checked".
    """

    operator: str
    backend: str
    dtype: str
    checks: int
    forward: float | None
    gradients: float | None
    verdict: str


def _check_of(result: Result) -> tuple[Any, ...]:
    return (
        result.operator,
        result.backend,
        result.dtype,
        tuple(result.shape.items()),
        result.layout,
    )


def _worst(results: Iterable[Result], gradients: bool) -> float | None:
    ratios = [
        result.ratio
        for result in results
        if result.ratio is not None and result.tensor.startswith("gradient of ") is gradients
    ]
    return max(ratios, default=None)


def summary(results: Iterable[Result]) -> list[Row]:
    """A row for each function, backend and dtype, in the order of the results; what does not apply has none."""
    grouped: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        if result.outcome != NOT_APPLICABLE:
            grouped.setdefault((result.operator, result.backend, result.dtype), []).append(result)
    rows = []
    for key, group in grouped.items():
        outcomes = {result.outcome for result in group}
        verdict = next(o for o in (FAILED, PASSED, NOT_CHECKED, DECLINED) if o in outcomes)
        compared = [result for result in group if result.outcome in (PASSED, FAILED)]
        checks = len(set(map(_check_of, compared)))
        rows.append(Row(*key, checks, _worst(compared, False), _worst(compared, True), verdict))
    return rows


def failures(results: Iterable[Result]) -> list[Result]:
    return [result for result in results if result.failed]


@dataclass(frozen=True)
class Left:
    """Checks that came to no comparison, for one reason."""

    outcome: str
    reason: str
    checks: int
    where: tuple[str, ...]  # "function (backend, dtype, dtype)"


def not_run(results: Iterable[Result]) -> list[Left]:
    """What was declined, did not apply or was not checked, each reason once."""
    grouped: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.outcome in (DECLINED, NOT_APPLICABLE, NOT_CHECKED):
            grouped.setdefault((result.outcome, result.message or ""), []).append(result)
    found = []
    for (outcome, reason), group in grouped.items():
        places: dict[tuple[str, str], list[str]] = {}
        for result in group:
            places.setdefault((result.operator, result.backend), []).append(result.dtype)
        where = tuple(
            f"{operator} ({', '.join((backend, *dict.fromkeys(dtypes)))})"
            for (operator, backend), dtypes in places.items()
        )
        found.append(Left(outcome, reason, len(group), where))
    return found


def number(value: float | None) -> str:
    """A ratio to three digits, or nothing."""
    if value is None:
        return ""
    return f"{value:.2f}" if value < 100 else f"{value:.3g}"


def described(result: Result) -> str:
    """What was off: "error 1.2e-03, allowed 3.4e-05", or the message where there are no figures."""
    if result.error is None or not math.isfinite(result.error):
        return result.message or ""
    return f"error {result.error:.3g}, allowed {result.allowed:.3g}"


def reproduction(result: Result, run: Run) -> str:
    """The command that makes the failing checks of a result's function, backend and dtype again."""
    words = ["hybrid-kernels", "validate", "--op", result.operator, "--backend", result.backend]
    words += ["--dtype", result.dtype, "--device", result.device, "--seed", str(run.seed)]
    words += ["--quick"] if run.quick else []
    words += ["--model", run.model, "--rows", str(run.rows)] if run.model is not None else []
    interpreter = result.backend == "triton" and result.device == "cpu"
    return ("TRITON_INTERPRET=1 " if interpreter else "") + shlex.join(words)


@dataclass(frozen=True)
class Run:
    """What was asked for, and how far it came: ``done`` of ``total`` checks, all of them unless interrupted."""

    device: str
    seed: int
    quick: bool
    model: str | None
    rows: int
    done: int
    total: int
    seconds: float

    @property
    def interrupted(self) -> bool:
        return self.done < self.total


def verdict(results: Sequence[Result], run: Run) -> tuple[bool, str]:
    """(whether all is well, the sentence that says it): nothing failed, something passed, nothing is missing."""
    failed, passed = failures(results), sum(result.passed for result in results)
    if failed:
        places = dict.fromkeys(f"{f.operator} ({f.backend}, {f.dtype})" for f in failed)
        text = f"failed: {len(failed)} of {passed + len(failed)} comparisons, in {', '.join(places)}"
    elif not passed:
        text = "nothing was checked"
    else:
        text = f"passed: {passed} comparisons of {run.done} checks"
    if run.interrupted:
        text = f"interrupted: {run.done} of {run.total} checks; {text}"
    return bool(passed) and not failed and not run.interrupted, text


def document(results: Sequence[Result], run: Run) -> dict[str, Any]:
    """All there is to say, JSON-able: what is not finite is null, and the message says so."""
    from hybrid_kernels.benchmarking.machine import commit, machine, versions

    passed, text = verdict(results, run)
    return _finite(
        {
            "passed": passed,
            "verdict": text,
            "run": asdict(run) | {"interrupted": run.interrupted},
            "machine": machine(),
            "versions": versions(),
            "commit": commit(),
            "summary": [asdict(row) for row in summary(results)],
            "not_run": [asdict(left) for left in not_run(results)],
            "failures": [
                asdict(result) | {"reproduce": reproduction(result, run)} for result in failures(results)
            ],
            "results": [asdict(result) for result in results],
        }
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(found: dict[str, Any]) -> str:
    """A line for each result, so that the file can be searched by eye."""
    head = {key: value for key, value in found.items() if key != "results"}
    lines = ",\n  ".join(json.dumps(result, ensure_ascii=False) for result in found["results"])
    text = json.dumps(head, indent=1, ensure_ascii=False)
    return f'{text.removesuffix("}").rstrip()},\n "results": [\n  {lines}\n ]\n}}\n'


def as_html(results: Sequence[Result], run: Run) -> str:
    """One self-contained page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hybrid_kernels.validation"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "shape": shape_name, "described": described}
    rows = summary(results)
    return environment.get_template("page.html").render(
        found=document(results, run),
        run=run,
        groups=[
            [row for row in rows if row.operator == name] for name in dict.fromkeys(r.operator for r in rows)
        ],
        failures=[(result, reproduction(result, run)) for result in failures(results)],
        left=not_run(results),
    )


def check_writable(path: Path) -> None:
    """OSError, before any work, where a file cannot be written there."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as file:
            file.write(b" " * 4096)  # a full disk takes a file, but no content
            file.flush()
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error

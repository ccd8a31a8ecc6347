"""The report of a run: one self-contained HTML page and the same tables in Markdown."""

from __future__ import annotations

import base64
import math
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_kernels.evaluation.findings import Estimate
    from hybrid_kernels.evaluation.results import Method, Results

# The languages of XNLI; another one is shown by its code.
LANGUAGE_NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "fr": "French", "hi": "Hindi", "ru": "Russian", "sw": "Swahili", "th": "Thai", "tr": "Turkish",
    "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
EXAMPLE_LENGTH = 320
NOTHING = "–"

# What each column of the main table means: (column, one line).
GLOSSARY = (
    ("Accuracy", "Share of rows answered correctly, averaged over languages with equal weight (macro)."),
    (
        "ECE",
        "Expected calibration error: how far the model's confidence is from its accuracy, on average over "
        "bins of confidence; 0 % means that answers given with 80 % confidence are right 80 % of the time. "
        "Mean over languages. With few rows chance alone makes it larger than 0. Lower is better.",
    ),
    (
        "NLL",
        "Negative log-likelihood of the right answer, in nats: punishes confident mistakes. Lower is better.",
    ),
    (
        "Brier",
        "Squared error of the probabilities, summed over classes, from 0 (perfect) to 2. Lower is better.",
    ),
    (
        "Parity gap",
        "Accuracy in the reference language minus accuracy in the worst language, in percentage points. "
        "Lower is more even; picking the worst of several languages makes it larger than 0 by chance alone.",
    ),
    ("Train loss", "Mean loss on the training rows at the end of training, in nats."),
    ("Trainable", "Number of parameters that training changes."),
    (
        "Step time",
        "Median time of a training step divided by that of the frozen model alone, with the quartiles.",
    ),
    ("Peak memory", "Largest memory in use while training."),
    ("Adapter", "Size of the saved adapter on disk."),
)


def write_report(results: Mapping[str, Any], folder: str | os.PathLike[str]) -> Path:
    """Write `report.html` and `report.md` into `folder` (made if absent) and return the path of the former.

    `results` is the content of a run's results.json, specified by `evaluation.results.Results`. The page
    loads nothing from anywhere. Each file is complete or untouched, also when writing is interrupted.

    Raises:
        ValueError: a key of `results` is missing or malformed; the message names it.
    """
    from hybrid_kernels.evaluation.results import parse_results

    view = _view(parse_results(results))
    texts = {"report.md": _environment(html=False).get_template("report.md").render(view)}
    texts["report.html"] = _environment(html=True).get_template("report.html").render(view)

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        _write_atomically(folder / name, text)
    return folder / "report.html"


def _view(results: Results) -> dict[str, Any]:
    """Everything the templates print, formatted; they hold no arithmetic."""
    import yaml

    from hybrid_kernels.chart_style import colour
    from hybrid_kernels.evaluation import findings, plots

    codes = sorted({code for method in results.methods for code in method.evaluation.per_language})
    languages = {code: _language_name(code) for code in codes}
    chance = 1 / results.data.classes
    leaders = {
        c.name: [m.name for m in (c.rank(results.methods)[0], *c.rank(results.methods)[1])]
        for c in findings.CRITERIA
    }
    return {
        "results": results,
        "chance": chance,
        "summary": _summary(results),
        "findings": findings.findings(results),
        "rows": [_row(m, colour(i), leaders) for i, m in enumerate(results.methods)],
        "glossary": GLOSSARY,
        "accuracy_table": _language_table(results.methods, languages, "accuracy", chance, 1.0),
        "ece_table": _language_table(results.methods, languages, "ece", 0.0, 0.4),
        "language_chart": plots.language_chart(results.methods, languages, chance),
        "reliability": plots.reliability_diagrams(results.methods),
        "curves": plots.training_curves(results.methods),
        "mixing": [(m.label, svg) for m in results.methods if (svg := plots.mixing_heat_map(m))],
        "config": yaml.safe_dump(results.config, sort_keys=False, allow_unicode=True),
    }


def _summary(results: Results) -> str:
    from hybrid_kernels.evaluation.findings import listing

    data, model, methods = results.data, results.model, results.methods
    ways = "one way" if len(methods) == 1 else f"{len(methods)} ways"
    codes = len({code for method in methods for code in method.evaluation.per_language})
    removed = data.train_rows_raw - data.train_rows
    return (
        f"This report compares {ways} of fine-tuning the pretrained model {model.name} "
        f"({model.parameters:,} parameters): {listing(m.label for m in methods)}. "
        f"Training used {data.train_rows:,} rows in {_plural(len(data.languages), 'language')}"
        + (
            f", after data governance and checks removed {removed:,} of {data.train_rows_raw:,}"
            if removed > 0
            else ""
        )
        + f"; the scores come from {data.evaluation_rows:,} other rows in {_plural(codes, 'language')}, "
        f"each to be put into one of {data.classes} classes."
    )


def _row(method: Method, colour: str, leaders: dict[str, list[str]]) -> dict[str, Any]:
    from hybrid_kernels.evaluation import findings

    macro, parity = method.evaluation.macro, method.evaluation.parity
    quartiles = method.step_time_spread
    return {
        "label": method.label,
        "colour": colour,
        "backend": method.backend,
        "trainable": f"{method.trainable_parameters:,}",
        "train_loss": "–"
        if method.train_loss is None
        else f"{method.train_loss:.3f}"
        if math.isfinite(method.train_loss)
        else "not finite",
        "accuracy": _percent(findings.accuracy(method)),
        "ece": _percent(findings.calibration(method)),
        "nll": f"{macro.nll:.3f}",
        "brier": f"{macro.brier:.3f}",
        "gap": _percent(findings.parity_gap(method)),
        "gap_languages": f"{parity.reference}–{parity.worst_language}",
        "std": f"{100 * parity.std:.1f}",
        "macro_f1": f"{100 * macro.macro_f1:.1f}",
        "step_time": NOTHING if method.step_time_ratio is None else f"{method.step_time_ratio:.2f}×",
        "step_time_quartiles": "" if quartiles is None else f"{quartiles[0]:.2f} to {quartiles[1]:.2f}",
        "memory": NOTHING
        if method.peak_memory_bytes is None
        else findings.binary_size(method.peak_memory_bytes),
        "adapter": NOTHING if method.adapter_bytes is None else findings.binary_size(method.adapter_bytes),
        "seeds": ", ".join(str(seed) for seed in method.seeds),
        # The columns in which this method leads or cannot be told from the leader.
        "leads": [criterion for criterion, names in leaders.items() if method.name in names],
    }


def _language_table(
    methods: list[Method], languages: dict[str, str], metric: str, low: float, high: float
) -> list[dict[str, Any]]:
    """A languages × methods table in per cent; a cell is (text, place of the value between low and high)."""
    table = []
    for code, name in languages.items():
        found = [method.evaluation.per_language.get(code) for method in methods]
        values = [None if scores is None else float(getattr(scores, metric)) for scores in found]
        cells = [
            (NOTHING, 0.0) if v is None else (f"{100 * v:.1f}", min(max((v - low) / (high - low), 0), 1))
            for v in values
        ]
        table.append({"language": name, "n": max(s.n for s in found if s is not None), "cells": cells})
    return table


def _language_name(code: str) -> str:
    return f"{LANGUAGE_NAMES[code]} ({code})" if code in LANGUAGE_NAMES else code


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} ± {100 * estimate.error:.1f}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _environment(html: bool) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("hybrid_kernels.evaluation"), jinja2.PackageLoader("hybrid_kernels")]
        ),
        undefined=jinja2.StrictUndefined,
        autoescape=html,
        finalize=None if html else _markdown_cell,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["excerpt"] = _excerpt
    environment.filters["language_name"] = _language_name
    return environment


def _markdown_cell(value: Any) -> Any:
    """One line without active Markdown or HTML, so that no datum breaks out of its table cell."""
    return re.sub(r"([\\`*\[\]|<>])", r"\\\1", " ".join(str(value).split()))


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _excerpt(text: str) -> str:
    """The beginning of a text; control characters, which HTML forbids, are shown as �."""
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "�", text)
    return text if len(text) <= EXAMPLE_LENGTH else text[: EXAMPLE_LENGTH - 1] + "…"


def _write_atomically(path: Path, text: str) -> None:
    # A lone surrogate, which JSON can carry, has no UTF-8 form; it becomes "?".
    content = text.encode("utf-8", errors="replace")
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
